"""Window attention of Swin v2: cosines in place of products, biases from a small network (2111.09883)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.layers.window import ShiftedWindows, WindowOrder, bias_of_offsets

# What a logit can be multiplied by at most, and what a bias can be at most.
LARGEST_SCALE = math.log(100.0)
LARGEST_BIAS = 16.0
HIDDEN = 512


def log_offsets(window: int, pretrained: int, device: torch.device) -> Tensor:
    """((2 window - 1)**2, 2): how far apart two places are, -8..8 for a `pretrained` window, on a log scale.

    In float32 whatever the model's precision, as everybody has it.
    """
    apart = torch.arange(1 - window, window, device=device).float() / max(pretrained - 1, 1) * 8
    scaled = apart.sign() * torch.log2(apart.abs() + 1.0) / math.log2(8)
    down, across = scaled[:, None].expand(-1, len(scaled)), scaled[None].expand(len(scaled), -1)
    return torch.stack([down, across], dim=-1).flatten(0, 1)


class CosineWindowAttention(ShiftedWindows):
    """Cosine self-attention in `window` x `window` tiles, shifted by `shift`; k has no bias.

    `static_shift` shifts even where one window covers the map at hand.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window: int,
        shift: int,
        pretrained_window: int = 0,
        qkv_bias: bool = True,
        order: WindowOrder = "pad_roll",
        static_shift: bool = True,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            window=window,
            shift=shift,
            order=order,
            always_shift=static_shift,
            scale=1.0,
            bias=False,
        )
        self.pretrained_window = pretrained_window or window
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_heads, bias=False))
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None

    def position_bias(self, like: Tensor) -> Tensor:
        """(heads, N, N), by way of the offsets' network."""
        offsets = log_offsets(self.window, self.pretrained_window, like.device).to(self.logit_scale.dtype)
        table: Tensor = LARGEST_BIAS * self.cpb_mlp(offsets).sigmoid()  # ((2 window - 1)**2, heads)
        return bias_of_offsets(table, self.window)

    def qkv_bias(self) -> Tensor | None:
        """(3C,), zeros for k; None where there is none."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def project(self, windows: Tensor) -> Tensor:
        """windows: (..., C) -> (..., 3C)."""
        return F.linear(windows, self.qkv.weight, self.qkv_bias())

    def factors(self) -> Tensor:
        """(heads, 1): what cosines are multiplied by."""
        return self.logit_scale.clamp(max=LARGEST_SCALE).exp()[:, 0]

    @staticmethod
    def prepare(qkv: Tensor, factors: Tensor) -> Tensor:
        """qkv: (windows, N, 3, heads, d) -> queries and keys of length one, queries times their factors."""
        q, k, v = qkv.unbind(2)  # (windows, N, heads, d) each
        exact = torch.promote_types(v.dtype, torch.float32)
        q, k = F.normalize(q.to(exact), dim=-1) * factors, F.normalize(k.to(exact), dim=-1)
        return torch.stack([q.to(v.dtype), k.to(v.dtype), v], dim=2)

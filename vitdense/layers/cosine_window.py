"""Window attention of Swin v2: cosines in place of products, biases from a small network (2111.09883)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.layers.embed import crop_rows_and_columns, pad_rows_and_columns
from vitdense.layers.masked import masked_attention
from vitdense.layers.tiles import merge, partition
from vitdense.layers.window import WindowOrder, relative_positions, shift_masks

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


class CosineWindowAttention(nn.Module):
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
        super().__init__()
        assert dim % num_heads == 0, f"{dim} channels don't divide by {num_heads} heads"
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.pretrained_window = pretrained_window or window
        self.roll_first, self.static_shift = order == "roll_pad", static_shift
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_heads, bias=False))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, _ = maps.shape
        shift = self._shift_for(height, width)
        if self.roll_first:
            maps = pad_rows_and_columns(_roll(maps, shift, -1), self.window, channels_last=True)
        else:
            maps = _roll(pad_rows_and_columns(maps, self.window, channels_last=True), shift, -1)
        size = (maps.shape[1], maps.shape[2])
        maps = merge(self._attend(partition(maps, self.window), batch, size, shift), self.window, *size)
        if self.roll_first:
            return _roll(crop_rows_and_columns(maps, height, width), shift, 1)
        return crop_rows_and_columns(_roll(maps, shift, 1), height, width)

    def _shift_for(self, height: int, width: int) -> tuple[int, int]:
        if self.shift == 0 or self.static_shift:
            return self.shift, self.shift
        return self.shift if height > self.window else 0, self.shift if width > self.window else 0

    def _attend(self, windows: Tensor, batch: int, size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
        """windows: (B * windows, N, C) -> (B * windows, N, C)."""
        qkv = torch.unflatten(self._project(windows), -1, (3, self.num_heads, -1))  # (B * windows, N, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B * windows, heads, N, d) each
        scale = self.logit_scale.clamp(max=LARGEST_SCALE).exp()
        q, k = (F.normalize(q, dim=-1) * scale).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype)
        bias = self._bias(windows)  # (heads, N, N)
        if shift == (0, 0):
            mixed = masked_attention(q, k, v, bias[None], scale=1.0)
        else:
            # Windows stand beside the heads, so that one bias serves the whole batch.
            bias = self._masked(bias, size, shift).flatten(0, 1)[None]  # (1, windows * heads, N, N)
            q, k, v = (torch.unflatten(each, 0, (batch, -1)).flatten(1, 2) for each in (q, k, v))
            mixed = masked_attention(q, k, v, bias, scale=1.0)  # (B, windows * heads, N, d)
            mixed = torch.unflatten(mixed, 1, (-1, self.num_heads)).flatten(0, 1)  # (B * windows, heads, N, d)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))  # (B * windows, N, C)
        return out

    def _project(self, windows: Tensor) -> Tensor:
        if self.q_bias is None or self.v_bias is None:
            out: Tensor = self.qkv(windows)
            return out
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(windows, self.qkv.weight, bias)

    def _bias(self, like: Tensor) -> Tensor:
        """(heads, N, N): a bias for each pair of places in a window."""
        offsets = log_offsets(self.window, self.pretrained_window, like.device).to(self.logit_scale.dtype)
        table = LARGEST_BIAS * self.cpb_mlp(offsets).sigmoid()  # ((2 window - 1)**2, heads)
        area = self.window**2
        out: Tensor = table[relative_positions(self.window, like.device)].view(area, area, -1).permute(2, 0, 1)
        return out

    def _masked(self, bias: Tensor, size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
        """bias: (heads, N, N) -> (windows, heads, N, N), with pairs parted that only the shift brought together."""
        masks = shift_masks(self.window, shift, bias.device).to(bias.dtype)
        rows, columns = size[0] // self.window, size[1] // self.window
        last_row = torch.arange(rows, device=bias.device) == rows - 1
        last_column = torch.arange(columns, device=bias.device) == columns - 1
        kind = (2 * last_row.long()[:, None] + last_column.long()[None, :]).reshape(-1)  # (windows,)
        return (bias + masks[:, None]).index_select(0, kind)


def _roll(maps: Tensor, shift: tuple[int, int], sign: int) -> Tensor:
    return maps if shift == (0, 0) else maps.roll((sign * shift[0], sign * shift[1]), (1, 2))

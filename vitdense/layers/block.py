"""The pre-norm transformer block and its parts (ViT, https://arxiv.org/abs/2010.11929)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitdense.layers.attention import Attention
from vitdense.layers.mlp import Mlp


class LayerScale(nn.Module):
    """A learned factor for each channel (CaiT, https://arxiv.org/abs/2103.17239)."""

    def __init__(self, dim: int, *, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (..., C) -> (..., C)."""
        return tokens * self.gamma


class DropPath(nn.Module):
    """Leaves a residual branch out for a random part of the batch, in training only (https://arxiv.org/abs/1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """branch: (B, ...) -> (B, ...), scaled so that its expectation stays."""
        if not self.training:
            return branch
        keep = 1.0 - self.rate
        drawn = branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1)).bernoulli_(keep)
        return branch * drawn.div_(keep)

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"{self.rate:.3f}"


class Block(nn.Module):
    """Attention and MLP, each normed before, scaled and dropped as asked, and added."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads=num_heads, qkv_bias=qkv_bias)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, init=layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden=int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, init=layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, C) -> (B, N, C)."""
        tokens = tokens + self.drop_path(self.ls1(self.attn(self.norm1(tokens))))
        out: Tensor = tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))
        return out


def run(block: nn.Module, x: Tensor) -> Tensor:
    """block(x), keeping what the backward pass needs."""
    out: Tensor = block(x)
    return out


def run_again_in_backward(block: nn.Module, x: Tensor) -> Tensor:
    """block(x), keeping x alone and running the block once more in the backward pass."""
    out: Tensor = checkpoint(block, x, use_reentrant=False)
    return out


def runner(grad_checkpointing: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    """How a backbone calls its blocks."""
    return run_again_in_backward if grad_checkpointing else run


def drop_path_rates(last: float, count: int) -> list[float]:
    """Rates that grow linearly from 0 at the first of `count` blocks to `last` at the last."""
    return [last * i / max(count - 1, 1) for i in range(count)]


def init_linear(module: nn.Module) -> None:
    """Linear layers as ViT and Swin start them: truncated normal of deviation 0.02, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

"""The pre-norm transformer block and its parts (ViT, https://arxiv.org/abs/2010.11929)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitdense.layers.attention import ATTENTIONS, Attending, AttentionOptions, Surroundings
from vitdense.layers.embed import crop_rows_and_columns, pad_rows_and_columns
from vitdense.layers.looks import GlobalLook, Look, WindowLook
from vitdense.layers.mlp import Activation, GatedMlp, Mlp, normed_mlp
from vitdense.layers.position import Grid
from vitdense.layers.tiles import Tiling, merge, partition


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


@dataclass(frozen=True)
class BlockOptions:
    """`hidden` is the width of the MLP (of a gated one: of its gate); a windowed block's stored_grid is its window."""

    attention: AttentionOptions
    hidden: int
    relations: Attending = "none"
    mlp: Literal["plain", "gated"] = "plain"
    activation: Activation = "gelu"
    mlp_norm_eps: float | None = None
    norm_eps: float = 1e-6
    layer_scale: float | None = None
    drop_path: float = 0.0


class Block(nn.Module):
    """Attention and MLP, each normed before, scaled and dropped as asked, and added."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        dim, scale = options.attention.dim, options.layer_scale
        self.norm1 = nn.LayerNorm(dim, eps=options.norm_eps)
        self.attn = ATTENTIONS[options.relations](options.attention)
        self.ls1 = nn.Identity() if scale is None else LayerScale(dim, init=scale)
        self.norm2 = nn.LayerNorm(dim, eps=options.norm_eps)
        self.mlp: Mlp | GatedMlp = (
            GatedMlp(dim, hidden=options.hidden, activation=options.activation, norm_eps=options.mlp_norm_eps)
            if options.mlp == "gated"
            else Mlp(dim, hidden=options.hidden, activation=options.activation)
        )
        self.ls2 = nn.Identity() if scale is None else LayerScale(dim, init=scale)
        self.drop_path = DropPath(options.drop_path) if options.drop_path > 0.0 else nn.Identity()
        self.adds_directly, self.drops = scale is None, options.drop_path > 0.0

    def forward(self, tokens: Tensor, around: Surroundings) -> Tensor:
        """tokens: (B, N, C) -> (B, N, C)."""
        tokens = tokens + self.drop_path(self.ls1(self.attend(self.norm1(tokens), around)))
        if self.adds_directly and not (self.training and self.drops):
            return normed_mlp(tokens, self.norm2, self.mlp, residual=True)
        out: Tensor = tokens + self.drop_path(self.ls2(normed_mlp(tokens, self.norm2, self.mlp)))
        return out

    def unmixed(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, C) -> (B, N, C) where every token attends to itself alone."""
        tokens = tokens + self.ls1(self.attn.values(self.norm1(tokens)))
        out: Tensor = tokens + self.ls2(normed_mlp(tokens, self.norm2, self.mlp))
        return out

    def look(self, tokens: Tensor, around: Surroundings) -> Look:
        """What `forward` attends to, of the same inputs."""
        return GlobalLook(self.attn.weights(self.norm1(tokens), around), around.grid)

    def attend(self, tokens: Tensor, around: Surroundings) -> Tensor:
        """tokens: (B, N, C), normed -> (B, N, C)."""
        out: Tensor = self.attn(tokens, around)
        return out

    def survey(self, grid: Grid, tokens: Tensor) -> Surroundings:
        """What `forward` needs to know about a grid, the same for all blocks of a kind."""
        return self.attn.survey(grid, tokens)

    def joined(self, around: Surroundings, guests: int) -> Surroundings:
        """The surroundings where so many tokens without a place come before all others."""
        return self.attn.joined(around, guests)


class WindowedBlock(Block):
    """Attention within windows of cells, padded with zeros at the right and bottom (ViTDet, SAM)."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__(options)
        assert options.attention.num_prefix == 0, "windows hold cells only"
        self.window = options.attention.stored_grid

    def attend(self, tokens: Tensor, around: Surroundings) -> Tensor:
        """tokens: (B, h * w, C), normed -> (B, h * w, C)."""
        height, width = around.grid
        maps = pad_rows_and_columns(torch.unflatten(tokens, 1, around.grid), self.window, channels_last=True)
        padded = (maps.shape[1], maps.shape[2])
        inside = Surroundings((self.window, self.window), around.tables)
        windows = self.attn(partition(maps, self.window), inside)  # (B * windows, window**2, C)
        maps = merge(windows, self.window, *padded)
        return crop_rows_and_columns(maps, height, width).flatten(1, 2)  # (B, h * w, C)

    def look(self, tokens: Tensor, around: Surroundings) -> Look:
        """What `forward` attends to, of the same inputs."""
        tiling = Tiling(self.window, (0, 0))
        windows = partition(tiling.lay_out(torch.unflatten(self.norm1(tokens), 1, around.grid)), self.window)
        inside = Surroundings((self.window, self.window), around.tables)
        return WindowLook(self.attn.weights(windows, inside), tiling, around.grid)

    def survey(self, grid: Grid, tokens: Tensor) -> Surroundings:
        """The tables are those of a window, the grid is the picture's."""
        return Surroundings(grid, self.attn.survey((self.window, self.window), tokens).tables)


def run(block: nn.Module, *inputs: Any) -> Tensor:
    """block(...), keeping what the backward pass needs."""
    out: Tensor = block(*inputs)
    return out


def run_again_in_backward(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """block(...), keeping its inputs alone and running the block once more in the backward pass."""
    out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    return out


def runner(grad_checkpointing: bool) -> Callable[..., Tensor]:
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

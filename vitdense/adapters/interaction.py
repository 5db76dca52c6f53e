"""How ViT-Adapter's two branches speak to each other by deformable attention (https://arxiv.org/abs/2205.08534)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.layers.block import DropPath, runner
from vitdense.layers.deformable import DeformableAttention
from vitdense.ops.deformable import Shapes


class Grid(NamedTuple):
    """Cells of `stride` pixels, from the picture's corner on."""

    height: int
    width: int
    stride: int


def shapes_of(grids: Sequence[Grid]) -> Shapes:
    """(h, w) of each."""
    return [(grid.height, grid.width) for grid in grids]


def reference_points(queries: Sequence[Grid], levels: Sequence[Grid], like: Tensor) -> Tensor:
    """(1, Q, levels, 2): the centre of each query's cell, as (x, y) in fractions of what each level's grid covers.

    Grids of other strides cover other extents: 75 pixels are 84 to a stride of 14 and 96 to one of 32. The published
    formula takes the fraction of the query's own grid for all; it is the same where every stride divides the picture.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    centres = []
    for height, width, stride in queries:
        y, x = ((torch.arange(n, dtype=dtype, device=like.device) + 0.5) * stride for n in (height, width))
        places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)  # (h, w, 2)
        centres.append(places.flatten(0, 1))
    x, y = torch.cat(centres).unbind(-1)  # (Q,) each, in pixels
    fractions = [
        torch.stack([x / (level.width * level.stride), y / (level.height * level.stride)], dim=-1) for level in levels
    ]
    return torch.stack(fractions, dim=1)[None]  # (1, Q, levels, 2)


@dataclass(frozen=True)
class InteractionOptions:
    """What injectors and extractors share."""

    dim: int
    num_heads: int
    num_points: int
    ratio: float
    cffn_ratio: float
    norm_eps: float
    drop_path: float
    grad_checkpointing: bool

    def attention(self, num_levels: int) -> DeformableAttention:
        """Attention into this many levels."""
        return DeformableAttention(
            self.dim, num_heads=self.num_heads, num_levels=num_levels, num_points=self.num_points, ratio=self.ratio
        )


class Injector(nn.Module):
    """The patches read the spatial prior; gamma, 0 at first, leaves the backbone as it was trained."""

    def __init__(self, options: InteractionOptions, *, num_levels: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(options.dim, eps=options.norm_eps)
        self.feat_norm = nn.LayerNorm(options.dim, eps=options.norm_eps)
        self.attn = options.attention(num_levels)
        self.gamma = nn.Parameter(torch.zeros(options.dim))

    def forward(self, patches: Tensor, references: Tensor, prior: Tensor, shapes: Shapes) -> Tensor:
        """patches: (B, h * w, C), prior: (B, S, C) of grids `shapes` -> (B, h * w, C)."""
        read = self.attn(self.query_norm(patches), references, self.feat_norm(prior), shapes)
        out: Tensor = patches + self.gamma * read
        return out


class DepthwiseConv(nn.Module):
    """One 3 x 3 convolution, channel by channel, over each of several grids."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, tokens: Tensor, shapes: Shapes) -> Tensor:
        """tokens: (B, S, C) of grids `shapes` -> (B, S, C)."""
        parts = torch.split(tokens, [height * width for height, width in shapes], dim=1)
        mixed = [
            self.dwconv(torch.unflatten(part.mT, 2, shape)).flatten(2).mT  # (B, h * w, C)
            for part, shape in zip(parts, shapes, strict=True)
        ]
        return torch.cat(mixed, dim=1)


class ConvFFN(nn.Module):
    """The two-layer perceptron with a depthwise convolution between its layers."""

    def __init__(self, dim: int, *, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, shapes: Shapes) -> Tensor:
        """tokens: (B, S, C) of grids `shapes` -> (B, S, C)."""
        out: Tensor = self.fc2(F.gelu(self.dwconv(self.fc1(tokens), shapes)))
        return out


class Extractor(nn.Module):
    """The spatial prior reads the patches, and its grids mix within themselves."""

    def __init__(self, options: InteractionOptions) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(options.dim, eps=options.norm_eps)
        self.feat_norm = nn.LayerNorm(options.dim, eps=options.norm_eps)
        self.attn = options.attention(1)
        hidden = int(options.dim * options.cffn_ratio)
        self.ffn = ConvFFN(options.dim, hidden=hidden) if hidden else None
        self.ffn_norm = nn.LayerNorm(options.dim, eps=options.norm_eps) if hidden else nn.Identity()
        self.drop_path = DropPath(options.drop_path) if options.drop_path > 0.0 else nn.Identity()

    def forward(self, prior: Tensor, references: Tensor, patches: Tensor, grid: Shapes, shapes: Shapes) -> Tensor:
        """prior: (B, S, C) of grids `shapes`, patches: (B, h * w, C) of the one in `grid` -> (B, S, C)."""
        prior = prior + self.attn(self.query_norm(prior), references, self.feat_norm(patches), grid)
        if self.ffn is None:
            return prior
        out: Tensor = prior + self.drop_path(self.ffn(self.ffn_norm(prior), shapes))
        return out


class InteractionBlock(nn.Module):
    """An injector before a stage of the backbone, and extractors after it."""

    def __init__(self, options: InteractionOptions, *, num_levels: int, extra_extractors: int) -> None:
        super().__init__()
        self.injector = Injector(options, num_levels=num_levels)
        self.extractor = Extractor(options)
        self.extra_extractors = nn.ModuleList(Extractor(options) for _ in range(extra_extractors))
        self._run = runner(options.grad_checkpointing)

    def inject(self, patches: Tensor, references: Tensor, prior: Tensor, shapes: Shapes) -> Tensor:
        """patches: (B, h * w, C), prior: (B, S, C) of grids `shapes` -> (B, h * w, C)."""
        return self._run(self.injector, patches, references, prior, shapes)

    def extract(self, prior: Tensor, references: Tensor, patches: Tensor, grid: Shapes, shapes: Shapes) -> Tensor:
        """prior: (B, S, C) of grids `shapes`, patches: (B, h * w, C) of the one in `grid` -> (B, S, C)."""
        for extractor in [self.extractor, *self.extra_extractors]:
            prior = self._run(extractor, prior, references, patches, grid, shapes)
        return prior


class Exchange:
    """One forward pass of the blocks between a backbone's stages; `prior` is what the spatial branch knows so far."""

    def __init__(self, blocks: Sequence[InteractionBlock], prior: Tensor, grids: Sequence[Grid], patches: Grid) -> None:
        self.blocks = blocks
        self.prior = prior
        self.shapes = shapes_of(grids)
        self.into_prior = reference_points([patches], grids, prior)
        self.into_patches = reference_points(grids, [patches], prior)

    def before(self, stage: int, patches: Tensor, grid: tuple[int, ...]) -> Tensor:
        """patches: (B, h * w, C) on their way into a stage -> (B, h * w, C), the prior read into them."""
        return self.blocks[stage].inject(patches, self.into_prior, self.prior, self.shapes)

    def after(self, stage: int, patches: Tensor, grid: tuple[int, ...]) -> None:
        """patches: (B, h * w, C) as a stage gave them; they are read into the prior."""
        self.prior = self.blocks[stage].extract(
            self.prior, self.into_patches, patches, [(grid[0], grid[1])], self.shapes
        )

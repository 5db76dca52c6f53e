"""Multi-scale deformable attention (Deformable DETR, https://arxiv.org/abs/2010.04159)."""

import math

import torch
from torch import Tensor, nn

from vitdense.layers.post_norm import linear_of_sum
from vitdense.ops.deformable import Shapes, deformable_attention


class DeformableAttention(nn.Module):
    """Each query reads a few points of each level, around its reference, with offsets and weights of its own.

    `ratio` is the width of the values against that of the queries.
    """

    def __init__(self, dim: int, *, num_heads: int, num_levels: int, num_points: int = 4, ratio: float = 1.0) -> None:
        super().__init__()
        width = int(dim * ratio)
        assert width % num_heads == 0, f"{width} channels of values don't divide by {num_heads} heads"
        self.points = (num_heads, num_levels, num_points)
        self.sampling_offsets = nn.Linear(dim, math.prod(self.points) * 2)
        self.attention_weights = nn.Linear(dim, math.prod(self.points))
        self.value_proj = nn.Linear(dim, width)
        self.output_proj = nn.Linear(width, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: every head looks in its own direction, point i lies i + 1 cells away, all weigh the same."""
        heads, levels, points = self.points
        angles = torch.arange(heads) * (2 * math.pi / heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)  # on a square, not on a circle
        away = torch.arange(1, points + 1)
        star = directions[:, None, None] * away[:, None]  # (heads, 1, points, 2)
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(star.expand(heads, levels, points, 2).reshape(-1))
            self.attention_weights.weight.zero_()
            for layer in (self.attention_weights, self.value_proj, self.output_proj):
                layer.bias.zero_()
            nn.init.xavier_uniform_(self.value_proj.weight)
            nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        features: Tensor,
        shapes: Shapes,
        padding: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """queries: (B, Q, C), features: (B, S, C) of grids `shapes` (h, w) -> (B, Q, C); `positions` (B or 1, Q, C)
        are added to the queries.

        references: (B or 1, Q, levels or 1, 2) as (x, y), or (..., 4) as boxes (cx, cy, w, h) that the offsets scale
        with; 0 and 1 are the outer edges of each level's grid. Where `padding` (B, S) bool is true, 0 is read.
        """
        heads, levels, points = self.points
        assert len(shapes) == levels, f"{len(shapes)} grids for {levels} levels"
        values = self.value_proj(features)
        if padding is not None:
            values = values.masked_fill(padding[..., None], 0.0)
        values = values.unflatten(-1, (heads, -1))  # (B, S, heads, d)
        layers = (self.sampling_offsets, self.attention_weights)
        if positions is None:
            offsets, weights = (layer(queries) for layer in layers)
        else:
            offsets, weights = linear_of_sum(queries, positions, layers)
        offsets = offsets.unflatten(-1, (heads, levels, points, 2)).to(references.dtype)
        weights = weights.unflatten(-1, (heads, levels * points)).softmax(dim=-1)
        centres = references[:, :, None, :, None, :2]  # (B, Q, 1, levels, 1, 2)
        if references.shape[-1] == 4:
            reach = references[:, :, None, :, None, 2:] * (0.5 / points)
        else:
            # Filled in, not copied from the host: sizes may be symbols, and a device would wait for the copy.
            sizes = [
                torch.stack([offsets.new_full((), width), offsets.new_full((), height)]) for height, width in shapes
            ]
            reach = torch.stack(sizes)[:, None].reciprocal()  # (levels, 1, 2): one cell
        locations = centres + offsets * reach
        mixed = deformable_attention(values, shapes, locations, weights.unflatten(-1, (levels, points)))
        out: Tensor = self.output_proj(mixed)
        return out

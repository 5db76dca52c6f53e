"""Attention of RT-DETR: of tokens to each other, and of queries to points around their boxes (RT-DETRv2, Lv et al.
2024, https://arxiv.org/abs/2407.17140)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.rtdetr.blocks import ACTIVATIONS, Activation
from vitdense.ops.deformable import Shapes, deformable_attention


class SelfAttention(nn.Module):
    """Tokens look at each other; positions tell who looks at whom, not what is seen."""

    def __init__(self, width: int, *, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, positions: Tensor, visible: Tensor | None = None) -> Tensor:
        """tokens: (B, N, C), positions: (N, C) or (B, N, C), visible: (N, N) bool, whom each may see -> (B, N, C)."""
        located = tokens + positions
        layers = ((self.q_proj, located), (self.k_proj, located), (self.v_proj, tokens))
        query, key, value = (layer(each).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, each in layers)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, *, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activate = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (..., C) -> (..., C)."""
        out: Tensor = self.dropout(self.fc2(self.activate(self.fc1(tokens))))
        return out


class BoxAttention(nn.Module):
    """Each query reads points of each level, `points[i]` of level i for each head, around its own box.

    Offsets are shares of `offset_scale` of the box. `discrete` reads the nearest cell and learns no places; without
    `projects` the cells are read as they are.
    """

    def __init__(
        self, width: int, *, heads: int, points: tuple[int, ...], offset_scale: float, discrete: bool, projects: bool
    ) -> None:
        super().__init__()
        self.heads, self.points, self.offset_scale = heads, points, offset_scale
        self.sampling_offsets = nn.Linear(width, heads * sum(points) * 2)
        self.attention_weights = nn.Linear(width, heads * sum(points))
        self.value_proj = nn.Linear(width, width) if projects else nn.Identity()
        self.output_proj = nn.Linear(width, width) if projects else nn.Identity()
        self.read = nearest_attention if discrete else deformable_attention
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: every head looks in its own direction, point i lies i + 1 steps away, all weigh the same."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)  # on a square, not on a circle
        away = torch.cat([torch.arange(1, number + 1) for number in self.points])
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_((directions[:, None] * away[:, None]).flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
            for layer in (self.value_proj, self.output_proj):
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    layer.bias.zero_()

    def forward(self, queries: Tensor, boxes: Tensor, memory: Tensor, shapes: Shapes) -> Tensor:
        """queries: (B, Q, C), boxes: (B, Q, 4) as (cx, cy, w, h) in 0..1, memory: (B, S, C), the grids of `shapes` one
        after another -> (B, Q, C).
        """
        values = self.value_proj(memory).unflatten(-1, (self.heads, -1))  # (B, S, heads, d)
        offsets = self.sampling_offsets(queries).unflatten(-1, (self.heads, -1, 2)).to(boxes.dtype)
        weights = self.attention_weights(queries).unflatten(-1, (self.heads, -1)).softmax(dim=-1)
        centres = boxes[:, :, None, None, :2]  # (B, Q, 1, 1, 2)
        reach = boxes[:, :, None, None, 2:] * self.offset_scale
        if len(set(self.points)) == 1:
            locations = centres + offsets * (reach / self.points[0])  # (B, Q, heads, levels * points, 2)
            each = (len(shapes), self.points[0])
            mixed = self.read(values, shapes, locations.unflatten(3, each), weights.unflatten(3, each))
        else:
            mixed = self._read_each(values, shapes, (centres, reach), offsets, weights)
        out: Tensor = self.output_proj(mixed)
        return out

    def _read_each(
        self, values: Tensor, shapes: Shapes, place: tuple[Tensor, Tensor], offsets: Tensor, weights: Tensor
    ) -> Tensor:
        """Levels one by one, since each has another number of points; place: centres and reach (B, Q, 1, 1, 2)."""
        grids = torch.split(values, [height * width for height, width in shapes], 1)
        parts = zip(torch.split(offsets, list(self.points), 3), torch.split(weights, list(self.points), 3), strict=True)
        read = []
        for grid, shape, number, (offset, weight) in zip(grids, shapes, self.points, parts, strict=True):
            locations = place[0] + offset * (place[1] / number)
            read.append(self.read(grid, [shape], locations[:, :, :, None], weight[:, :, :, None]))
        return torch.stack(read).sum(0)


def nearest_attention(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """As `deformable_attention`, but of the nearest cells, those at the border for points beyond it.

    values: (B, S, heads, d), locations: (B, Q, heads, levels, points, 2), weights: (B, Q, heads, levels, points)
    -> (B, Q, heads * d).
    """
    cells, start = [], 0
    for level, (height, width) in enumerate(shapes):
        x, y = locations[:, :, :, level].unbind(-1)
        column = (x * width + 0.5).long().clamp(0, width - 1)
        row = (y * height + 0.5).long().clamp(0, height - 1)
        cells.append(row * width + column + start)
        start += height * width
    chosen = torch.stack(cells, dim=3).flatten(3).transpose(1, 2)  # (B, heads, Q, levels * points)
    table = values.transpose(1, 2)  # (B, heads, S, d)
    rows = chosen.flatten(2)[..., None].expand(-1, -1, -1, values.shape[-1])
    read = table.gather(2, rows).view(*chosen.shape, -1)  # (B, heads, Q, levels * points, d)
    shares = weights.flatten(3).transpose(1, 2)[..., None].to(read.dtype)
    return (read * shares).sum(3).transpose(1, 2).flatten(2)  # (B, Q, heads * d)

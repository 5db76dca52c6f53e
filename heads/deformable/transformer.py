"""Deformable DETR's encoder over the cells of all levels, and its decoder, which may refine boxes layer by layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heads.deformable.grids import Grids
from heads.deformable.layers import DecoderLayer, EncoderLayer
from heads.detection.boxes import inverse_sigmoid
from heads.detection.transformer import Shape


class Encoder(nn.Module):
    """Layers in which each cell reads all levels."""

    def __init__(self, shape: Shape, layers: int, *, levels: int, points: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(shape, levels=levels, points=points) for _ in range(layers))
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, cells: Tensor, positions: Tensor, grids: Grids) -> Tensor:
        """cells: (B, S, C), positions: (B or 1, S, C) -> (B, S, C)."""
        precise = cells.new_empty(0, dtype=torch.promote_types(cells.dtype, torch.float32))
        references = grids.at_levels(grids.centres(precise))
        cells, padding = self.dropout(cells), grids.padding()
        for layer in self.layers:
            cells = layer(cells, positions, references, grids, padding)
        return cells


@dataclass(frozen=True)
class Queries:
    """Where the decoder starts: content and positions (B, Q, C), references (B, Q, 2 or 4) in shares of the picture.

    `allowed` (Q, Q) bool says which query may look at which other; None: all at all.
    """

    content: Tensor
    positions: Tensor
    references: Tensor
    allowed: Tensor | None = None


class Decoder(nn.Module):
    """Layers in which queries read the encoder's cells."""

    def __init__(self, shape: Shape, layers: int, *, levels: int, points: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(shape, levels=levels, points=points) for _ in range(layers))

    def forward(self, start: Queries, cells: Tensor, grids: Grids) -> Tensor:
        """cells: (B, S, C) -> (L, B, Q, C), the queries as each layer leaves them; references stay."""
        hidden, found, padding = start.content, [], grids.padding()
        references = grids.at_levels(start.references)
        for layer in self.layers:
            hidden = layer(hidden, start.positions, references, cells, grids, padding, start.allowed)
            found.append(hidden)
        return torch.stack(found)

    def refine(
        self, start: Queries, cells: Tensor, grids: Grids, bbox_embed: nn.ModuleList, *, forward_twice: bool
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, each layer reading around the boxes that the one before found -> also these, (L, B, Q, 4).

        No gradient goes from a layer's sampling to the boxes; `forward_twice` lets one go from each layer's boxes to
        those they correct, as DINO does (https://arxiv.org/abs/2203.03605).
        """
        hidden, found, boxes, padding = start.content, [], [], grids.padding()
        references = corrected = start.references
        for layer, embed in zip(self.layers, bbox_embed, strict=False):  # a first stage has a box head more
            at_levels = grids.at_levels(references)
            hidden = layer(hidden, start.positions, at_levels, cells, grids, padding, start.allowed)
            found.append(hidden)
            change = embed(hidden)
            boxes.append(moved(corrected if forward_twice else references, change))
            corrected = moved(references, change)
            references = corrected.detach()
        return torch.stack(found), torch.stack(boxes)


def moved(references: Tensor, change: Tensor) -> Tensor:
    """references: (..., 2 or 4) in 0..1, change: (..., 4) before the sigmoid -> boxes (..., 4) in 0..1."""
    start = inverse_sigmoid(references)
    if references.shape[-1] == 2:
        change = torch.cat([change[..., :2] + start, change[..., 2:]], dim=-1)
        return change.sigmoid()
    return (change + start).sigmoid()

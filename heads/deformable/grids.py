"""Several maps as one row of cells: where each grid begins, which cells show a picture, and where they lie."""

from dataclasses import dataclass

import torch
from torch import Tensor

from heads.detection.positions import sine_positions, valid_cells
from vitdense.contracts import Batch


@dataclass(frozen=True)
class Grids:
    """S cells of L maps, finest first, row by row.

    `shapes` are the maps' (h, w). Where pictures are padded, `valid` (B, S) bool says which cells show them, and
    `counts` (B, L, 2) how many columns and rows of each map do; both are None where all do.
    """

    shapes: tuple[tuple[int, int], ...]
    valid: Tensor | None
    counts: Tensor | None

    @classmethod
    def of(cls, maps: list[Tensor], batch: Batch) -> "Grids":
        """Of maps (B, C, h, w) of a batch's pictures."""
        shapes = tuple((each.shape[-2], each.shape[-1]) for each in maps)
        valid = [cells for shape in shapes if (cells := valid_cells(batch, shape)) is not None]  # (B, h, w) each
        if not valid:
            return cls(shapes, None, None)
        counts = [torch.stack([cells[:, 0].sum(-1), cells[:, :, 0].sum(-1)], dim=-1) for cells in valid]
        return cls(shapes, torch.cat([cells.flatten(1) for cells in valid], dim=1), torch.stack(counts, dim=1))

    def padding(self) -> Tensor | None:
        """(B, S) bool: the cells that show no picture; None where there are none."""
        return None if self.valid is None else ~self.valid

    def ratios(self, like: Tensor) -> Tensor | None:
        """(B, L, 2): the share of each map's width and height that shows the picture; None where it is 1."""
        if self.counts is None:
            return None
        sides = [like.new_full((), side) for height, width in self.shapes for side in (width, height)]
        return self.counts / torch.stack(sides).view(-1, 2)

    def positions(self, channels: int, like: Tensor) -> list[Tensor]:
        """The sine embedding of each map's cells, (B or 1, h * w, channels)."""
        found, start = [], 0
        for height, width in self.shapes:
            stop = start + height * width
            if self.valid is None:
                cells = torch.ones(1, height, width, dtype=torch.bool, device=like.device)
            else:
                cells = torch.unflatten(self.valid[:, start:stop], 1, (height, width))
            sines = sine_positions(cells, channels, centred=True, dtype=torch.promote_types(like.dtype, torch.float32))
            found.append(sines.flatten(2).mT)
            start = stop
        return found

    def centres(self, like: Tensor) -> Tensor:
        """(B or 1, S, 2): each cell's (x, y), where 1 is the far edge of the picture."""
        found = []
        for level, (height, width) in enumerate(self.shapes):
            rows = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
            columns = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
            if self.counts is None:
                rows, columns = rows / height, columns / width
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            cells = torch.stack([x, y], dim=-1).flatten(0, 1)[None]  # (1, h * w, 2)
            found.append(cells if self.counts is None else cells / self.counts[:, level, None])
        return torch.cat(found, dim=1)

    def at_levels(self, points: Tensor) -> Tensor:
        """points: (B, Q, 2 or 4) in shares of the picture -> (B, Q, L or 1, 2 or 4) in shares of each map."""
        ratios = self.ratios(points)
        if ratios is None:
            return points[:, :, None]
        return points[:, :, None] * ratios.repeat(1, 1, points.shape[-1] // 2)[:, None]

    def maps(self, cells: Tensor) -> list[Tensor]:
        """cells: (B, S, C) -> the maps (B, C, h, w) they are of."""
        parts = torch.split(cells, [height * width for height, width in self.shapes], dim=1)
        return [torch.unflatten(part.mT, 2, shape) for part, shape in zip(parts, self.shapes, strict=True)]

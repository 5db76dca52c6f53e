"""Bilinear interpolation along one axis as sparse matrices, there and back, so that it can be done strip by strip."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Bags:
    """A sparse matrix: row i holds `shares` in the columns `indices`, both from `starts[i]` to `starts[i + 1]`."""

    indices: Tensor
    starts: Tensor
    shares: Tensor

    def times(self, table: Tensor) -> Tensor:
        """table: (columns, C) -> (rows, C); what is read is never laid out, and nothing is summed out of order."""
        return F.embedding_bag(
            self.indices,
            table,
            self.starts,
            mode="sum",
            per_sample_weights=self.shares,
            include_last_offset=True,
        )

    def repeated(self, count: int, columns: int) -> "Bags":
        """The same for `count` tables of so many columns, one below the other."""
        number = torch.arange(count, dtype=torch.int32, device=self.indices.device)[:, None]
        starts = (self.starts[:-1] + number * len(self.indices)).view(-1)
        end = self.starts[-1:] + (count - 1) * len(self.indices)
        indices = (self.indices + number * columns).view(-1)
        return Bags(indices, torch.cat([starts, end]), self.shares.repeat(count))


@dataclass(frozen=True)
class Strip:
    """Some consecutive places of the finer axis, the `cells` of the coarser that they lie between, and how."""

    places: slice
    cells: slice
    up: Bags
    down: Bags

    @property
    def counts(self) -> tuple[int, int]:
        """How many places, and how many cells."""
        return self.places.stop - self.places.start, self.cells.stop - self.cells.start


def taps(cells: int, size: int, *, align_corners: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells that each of `size` places lies between, and the share of the second: (size,) each.

    Computed as torch does in this precision, so that both interpolate at the same places.
    """
    place = torch.arange(size, dtype=dtype, device="cpu")
    if align_corners:
        scale = torch.tensor(cells - 1, dtype=dtype, device="cpu") / max(size - 1, 1)
        position = scale * place if size > 1 else place
    else:
        scale = torch.tensor(cells, dtype=dtype, device="cpu") / size
        position = (scale * (place + 0.5) - 0.5).clamp_min(0)
    first = position.long().clamp_max(cells - 1)
    return first, (first + 1).clamp_max(cells - 1), (position - first).clamp(0, 1)


@lru_cache(maxsize=64)
def strips(
    cells: int, size: int, length: int, *, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Strip, ...]:
    """All places in strips of `length`, from one end to the other."""
    with torch.inference_mode(False), torch.no_grad():
        first, second, share = taps(cells, size, align_corners=align_corners, dtype=dtype)
        return tuple(
            _strip(slice(start, min(start + length, size)), first, second, share, device)
            for start in range(0, size, length)
        )


def _strip(places: slice, first: Tensor, second: Tensor, share: Tensor, device: torch.device) -> Strip:
    columns = torch.stack([first[places], second[places]], dim=1).view(-1)  # (places * 2,)
    shares = torch.stack([1 - share[places], share[places]], dim=1).view(-1)
    begin, end = int(columns[0]), int(columns[-1]) + 1
    columns = columns - begin
    up = _bags(columns, torch.arange(0, len(columns) + 1, 2, device="cpu"), shares, device)
    order = columns.argsort(stable=True)
    starts = F.pad(columns.bincount(minlength=end - begin).cumsum(0), (1, 0))
    return Strip(places, slice(begin, end), up, _bags(order // 2, starts, shares[order], device))


def _bags(indices: Tensor, starts: Tensor, shares: Tensor, device: torch.device) -> Bags:
    return Bags(indices.int().to(device), starts.int().to(device), shares.to(device))


@dataclass(frozen=True)
class Grid:
    """A map (C, h, w) of which strips of rows are read at another size, (H, W), and written back to."""

    rows: tuple[Strip, ...]
    columns: Strip

    def read(self, maps: Tensor, strip: Strip) -> Tensor:
        """maps: (C, h, w) -> (pixels of the strip, C), row by row, in the precision of the matrices."""
        (wide, across), (tall, down) = self.columns.counts, strip.counts
        part = maps[:, strip.cells, self.columns.cells].flatten(1).t()  # (cells, C)
        table = part.to(self.columns.up.shares.dtype).contiguous()
        widened = self.columns.up.repeated(down, across).times(table)  # (down * W, C)
        return strip.up.times(widened.view(down, -1)).view(tall * wide, -1)  # (tall * W, C)

    def write(self, gradient: Tensor, strip: Strip, arrived: Tensor) -> None:
        """arrived: (pixels of the strip, C), contiguous: its way back through `read` is added to gradient (C, h, w)."""
        (wide, across), (tall, down) = self.columns.counts, strip.counts
        gathered = strip.down.times(arrived.view(tall, -1)).view(down * wide, -1)  # (down * W, C)
        narrowed = self.columns.down.repeated(down, wide).times(gathered)  # (cells, C)
        gradient[:, strip.cells, self.columns.cells] += narrowed.t().view(-1, down, across)


def grid_of(maps: Tensor, size: tuple[int, int], *, align_corners: bool, values: int) -> Grid:
    """For maps (B, C, h, w) at `size`, in strips of about so many values; computed in float32 at least."""
    _, channels, height, width = maps.shape
    dtype = torch.promote_types(maps.dtype, torch.float32)
    dear = max(size[1], -(-height * width // size[0]))  # the cells of a strip outnumber its pixels where maps shrink
    length = max(1, values // (channels * dear))
    rows = strips(height, size[0], length, align_corners=align_corners, dtype=dtype, device=maps.device)
    columns = strips(width, size[1], size[1], align_corners=align_corners, dtype=dtype, device=maps.device)
    return Grid(rows, columns[0])

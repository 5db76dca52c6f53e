"""Deformable sampling on CPUs, some queries at a time, with its gradients: nothing is kept that can be made again.

Every grid gets a border of zeros, so that points beyond its edges read zeros and need no masks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

Shapes = Sequence[tuple[int, int]]

_POINTS = 2**15
"""About as many points are placed at once: few enough for a core's cache, many enough for two threads."""
_ROWS = 2**14
"""About as many rows are laid out at once."""
_BORDER = 2


@dataclass(frozen=True)
class Layout:
    """Where the cells of bordered grids lie in a table of rows, and what each of the H * L * P points of a query needs.

    The border of two cells at the right of a row is the one at the left of the next. `blocks` are the (first row, h, w)
    of each level; width, height, firsts and strides (H * L * P,) are of each point's grid: its size, the row of its
    cell (0, 0) for the point's head, and the distance of two lines in rows.
    """

    heads: int
    points: int
    cells: int
    blocks: tuple[tuple[int, int, int], ...]
    width: Tensor
    height: Tensor
    firsts: Tensor
    strides: Tensor

    @classmethod
    def of(cls, shapes: Shapes, heads: int, points: int, like: Tensor) -> "Layout":
        """For `points` on each level, in the precision of `like`."""
        blocks, start = [], 0
        for height, width in shapes:
            blocks.append((start, height, width))
            start += (height + 2 * _BORDER) * (width + _BORDER) + _BORDER
        levels = [
            (width, height, heads * (first + _BORDER * (width + _BORDER + 1)), heads * (width + _BORDER))
            for first, height, width in blocks
        ]
        table = torch.tensor(levels, dtype=like.dtype).t()[:, None, :, None].expand(-1, heads, -1, points)
        width_, height_, firsts, strides = table.flatten(1)
        own = torch.arange(heads, dtype=like.dtype).repeat_interleave(len(blocks) * points)
        return cls(heads, len(blocks) * points, start, tuple(blocks), width_, height_, firsts + own, strides)

    def fits(self, like: Tensor) -> bool:
        """Whether the precision of `like` can count the rows."""
        return self.cells * self.heads < (2**24 if like.dtype == torch.float32 else 2**31)

    def corners(self) -> Tensor:
        """(4, L * P) int32: from a point's first corner to all four, in rows."""
        down = self.strides[: self.points].to(torch.int32)
        right = torch.full_like(down, self.heads)
        return torch.stack([torch.zeros_like(down), right, down, down + right])

    def inside(self, table: Tensor) -> Iterator[Tensor]:
        """table: (cells * heads, d) -> of each level the (h, w, heads, d) that lie inside the border, as views."""
        cells = table.view(self.cells, self.heads, -1)
        for first, height, width in self.blocks:
            across = width + _BORDER
            skipped = first + _BORDER * (across + 1)
            lines = torch.unflatten(cells[skipped : skipped + height * across], 0, (height, across))
            yield lines[:, :width]

    def bordered(self, values: Tensor) -> Tensor:
        """values: (S, heads, d) -> (cells * heads, d)."""
        table = values.new_zeros(self.cells * self.heads, values.shape[-1])
        parts = torch.split(values, [height * width for _, height, width in self.blocks])
        for inside, part in zip(self.inside(table), parts, strict=True):
            inside.copy_(torch.unflatten(part, 0, inside.shape[:2]))
        return table

    def place(self, locations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """locations: (q, heads, L, P, 2) -> the row of each point's first corner (q, H * L * P) int32, and how far the
        point lies from it, to the right and down."""
        spots = locations.reshape(len(locations), -1, 2)
        left, right = _split(spots[..., 0], self.width)
        top, down = _split(spots[..., 1], self.height)
        rows = top.mul_(self.strides).add_(left, alpha=self.heads).add_(self.firsts).to(torch.int32)
        # A place that is no number must not be read from; what comes of it is no number all the same.
        return rows.clamp_(0, self.cells * self.heads - 1), right, down


def _split(places: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """places: (q, n) in shares of `size` (n,) -> the cell before each, and the rest."""
    place = (places * size).sub_(0.5).clamp_min_(-1.5)
    place = torch.minimum(place, size + 0.5, out=place)
    before = place.floor()
    return before, place.sub_(before)


def _shares(weights: Tensor, right: Tensor, down: Tensor) -> list[Tensor]:
    """weights, right, down: (q, n) -> what each of the four corners counts, (q, n) each."""
    below = weights * down
    above = weights - below
    below_right, above_right = below * right, above * right
    return [above.sub_(above_right), above_right, below.sub_(below_right), below_right]


def _strips(queries: int, each: int) -> Iterator[slice]:
    """Slices of about `_POINTS` points, of which a query has `each`."""
    count = max(1, -(-queries * each // _POINTS))
    edges = [queries * i // count for i in range(count + 1)]
    return (slice(a, b) for a, b in pairwise(edges))


def sample_in_strips(layout: Layout, values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """As `deformable_attention`, of tensors of one precision."""
    batch, queries, heads = locations.shape[:3]
    corners, width = layout.corners(), values.shape[-1]
    out = values.new_empty(batch, queries, heads * width)
    for picture in range(batch):
        table = layout.bordered(values[picture])
        for some in _strips(queries, heads * layout.points):
            rows, right, down = layout.place(locations[picture, some])
            shares = _shares(weights[picture, some].reshape(rows.shape), right, down)
            bags = _by_corner(rows, corners, heads)
            each = torch.stack(
                [torch.unflatten(share, 1, (heads, -1)) for share in shares], dim=2
            )  # (q, heads, 4, L * P)
            summed = F.embedding_bag(
                bags.flatten(0, 1).flatten(1), table, mode="sum", per_sample_weights=each.flatten(0, 1).flatten(1)
            )
            out[picture, some] = summed.view(-1, heads * width)
    return out


def _by_corner(rows: Tensor, corners: Tensor, heads: int) -> Tensor:
    """rows: (q, H * L * P), corners: (4, L * P) -> (q, heads, 4, L * P)."""
    bags = rows.new_empty(len(rows), heads, *corners.shape)
    for index, corner in enumerate(corners):
        torch.add(torch.unflatten(rows, 1, (heads, -1)), corner, out=bags[:, :, index])
    return bags


def gradients_in_strips(
    layout: Layout, above: Tensor, values: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """above: (B, Q, heads * d), what arrives at the sums -> what arrives at values, locations and weights."""
    batch, queries, heads = locations.shape[:3]
    at_values = torch.empty_like(values, memory_format=torch.contiguous_format)
    at_locations = torch.empty_like(locations, memory_format=torch.contiguous_format)
    at_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    for picture in range(batch):
        arrived = above[picture].reshape(queries * heads, -1)  # (Q * heads, d)
        table = layout.bordered(values[picture])
        found = _of_points(layout, arrived, table, locations[picture], weights[picture])
        at_locations[picture], at_weights[picture], rows, shares = found
        del table
        grown = _of_rows(layout, arrived, rows, shares)
        parts = torch.split(at_values[picture], [height * width for _, height, width in layout.blocks])
        for inside, part in zip(layout.inside(grown), parts, strict=True):
            part.copy_(inside.flatten(0, 1))
    return at_values, at_locations, at_weights


def _of_points(
    layout: Layout, arrived: Tensor, table: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one picture: what arrives at locations and weights; and the rows (Q, H * L * P) and shares (4, Q, H * L * P)
    that the points read."""
    heads, corners, queries = layout.heads, layout.corners(), len(locations)
    each = heads * layout.points
    at_locations, at_weights = torch.empty_like(locations), torch.empty_like(weights)
    all_rows = torch.empty(queries, each, dtype=torch.int32)
    all_shares = weights.new_empty(4, queries, each)
    for some in _strips(queries, each):
        rows, right, down = layout.place(locations[some])
        own = weights[some].reshape(rows.shape)
        for index, share in enumerate(_shares(own, right, down)):
            all_shares[index, some] = share
        all_rows[some] = rows
        bags = _by_corner(rows, corners, heads)
        read = _products(bags, table, arrived[some.start * heads : some.stop * heads])  # (q, heads, 4, L * P)
        right, down, own = (torch.unflatten(part, 1, (heads, -1)) for part in (right, down, own))
        first, second, third, fourth = read.unbind(2)
        high, low = torch.lerp(first, second, right), torch.lerp(third, fourth, right)
        torch.lerp(high, low, down, out=at_weights[some].flatten(2))
        across = torch.lerp(second.sub_(first), fourth.sub_(third), down)
        spots = at_locations[some].flatten(2, 3)  # (q, heads, L * P, 2)
        torch.mul(across.mul_(own), torch.unflatten(layout.width, 0, (heads, -1)), out=spots[..., 0])
        torch.mul(low.sub_(high).mul_(own), torch.unflatten(layout.height, 0, (heads, -1)), out=spots[..., 1])
    return at_locations, at_weights, all_rows, all_shares


def _products(bags: Tensor, table: Tensor, arrived: Tensor) -> Tensor:
    """bags: (q, heads, 4, L * P), table: (rows, d), arrived: (q * heads, d) -> each row times what arrived at its bag,
    (q, heads, 4, L * P)."""
    flat = bags.flatten(0, 1).flatten(1)  # (q * heads, 4 * L * P)
    out, ones = table.new_empty(flat.shape), table.new_ones(table.shape[1])
    at_once = max(1, _ROWS // flat.shape[1])
    for start in range(0, len(flat), at_once):
        some = slice(start, start + at_once)
        rows = table.index_select(0, flat[some].flatten())
        rows.view(*flat[some].shape, -1).mul_(arrived[some, None])
        torch.mv(rows, ones, out=out[some].flatten())  # faster than a product for each bag
    return out.view(bags.shape)


def _of_rows(layout: Layout, arrived: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """What arrives at the table of one picture, (cells * heads, d): the points of a row, sorted, are its bag."""
    count = layout.cells * layout.heads
    keys, order = rows.flatten().sort()
    ends = torch.bincount(keys, minlength=count).cumsum(0)
    firsts = torch.cat([ends.new_zeros(1), ends[:-1]])
    bags = torch.div(order, layout.points, rounding_mode="floor")
    grown = arrived.new_zeros(count, arrived.shape[1])
    for index, share in enumerate(shares.flatten(1)):
        part = F.embedding_bag(bags, arrived, firsts, mode="sum", per_sample_weights=share.gather(0, order))
        for first, height, width in layout.blocks:
            across = width + _BORDER
            start, stop = layout.heads * first, layout.heads * (first + (height + 3) * across)
            shift = layout.heads * (index % 2 + index // 2 * across)
            grown[start + shift : stop + shift] += part[start:stop]
    return grown

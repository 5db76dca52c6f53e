"""Sampling of multi-scale deformable attention by a Triton kernel; untimed, and not yet run on a GPU."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES = 16
"""Queries of a program, for one head."""


def sample_by_kernel(values: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> Tensor:
    """values (B, S, heads, d), locations (B, Q, heads, levels, points, 2), weights (B, Q, heads, levels, points).

    -> (B, Q, heads * d): `deformable_attention`, read in the values' precision and summed in float32.
    """
    (batch, _, heads, width), (queries, points) = values.shape, (locations.shape[1], locations.shape[4])
    summed = torch.empty((batch, queries, heads * width), dtype=values.dtype, device=values.device)
    grid = (triton.cdiv(queries, QUERIES), heads, batch)
    with torch.cuda.device_of(values):
        _sample[grid](
            values, grids_of(shapes, values.device), locations.contiguous(), weights.contiguous(), summed,
            queries, heads, width, len(shapes), points, *values.stride(),
            tile=QUERIES, block=triton.next_power_of_2(width),
        )  # fmt: skip
    return summed


@lru_cache(maxsize=64)
def grids_of(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """(levels, 3): each grid's height, width and first cell; kept, since a device would wait for the copy."""
    with torch.inference_mode(False):
        sizes = torch.tensor(shapes, dtype=torch.int32, device="cpu")
        cells = sizes.prod(dim=1, keepdim=True, dtype=torch.int32)
        return torch.cat([sizes, cells.cumsum(0, dtype=torch.int32) - cells], dim=1).to(device)


@triton.jit(do_not_specialize=["queries", "heads", "width", "levels", "points", "step_picture", "step_cell"])
def _sample(
    values, grids, locations, weights, summed,
    queries, heads, width, levels, points, step_picture, step_cell, step_head, step_channel,
    tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Some queries of a picture, for one head."""
    picture, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    query, channel = tl.program_id(0) * tile + tl.arange(0, tile), tl.arange(0, block)
    asked, kept = query < queries, (channel < width)[None, :]
    row = (picture * queries + query) * heads + head
    plane = values + picture * step_picture + head * step_head + channel[None, :] * step_channel  # (1, block)
    total = tl.zeros((tile, block), tl.float32)
    for level in range(0, levels):
        height, across = tl.load(grids + level * 3), tl.load(grids + level * 3 + 1)
        start = tl.load(grids + level * 3 + 2)
        for point in range(0, points):
            at = (row * levels + level) * points + point
            weight = tl.load(weights + at, mask=asked, other=0.0).to(tl.float32)
            x = tl.load(locations + at * 2, mask=asked, other=0.0).to(tl.float32) * across - 0.5
            y = tl.load(locations + at * 2 + 1, mask=asked, other=0.0).to(tl.float32) * height - 0.5
            left, share_x = cell_before(x, across)
            above, share_y = cell_before(y, height)
            for corner in tl.static_range(4):
                cell, inside = corner_cell(left + corner % 2, above + corner // 2, across, height, asked)
                share = (share_y if corner // 2 else 1 - share_y) * (share_x if corner % 2 else 1 - share_x) * weight
                place = plane + (start + cell)[:, None] * step_cell
                total += share[:, None] * tl.load(place, mask=inside[:, None] & kept, other=0.0).to(tl.float32)
    target = summed + row[:, None] * width + channel[None, :]
    tl.store(target, total.to(summed.dtype.element_ty), mask=asked[:, None] & kept)


@triton.jit
def cell_before(place, count):
    """The cell before each place and the next one's share; a place far out lies just outside, as a whole number can."""
    below = tl.floor(place)
    return tl.minimum(tl.maximum(below, -2.0), count).to(tl.int32), place - below


@triton.jit
def corner_cell(column, row, across, height, asked):
    """A corner's cell within its grid, and whether there is one."""
    return row * across + column, asked & (column >= 0) & (column < across) & (row >= 0) & (row < height)

"""The gradients of deformable sampling by two Triton kernels; untimed, and not yet run on a GPU.

The first has one program for some queries and a head, which write the gradients at their own points. Those at the
values are sums over points that lie anywhere: sorted by cell, so that the second has one program for each cell, nothing
is added by two programs, and two runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitdense.ops.deformable_triton import QUERIES, cell_before, corner_cell, grids_of

CELLS = 16
"""Cells of a program, each of one head."""


def gradients_by_kernels(
    above: Tensor,
    values: Tensor,
    shapes: tuple[tuple[int, int], ...],
    locations: Tensor,
    weights: Tensor,
    *,
    at_values: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """above (B, Q, heads * d) -> the gradients at values, if they are asked for, locations and weights.

    values: (B, S, heads, d), locations: (B, Q, heads, levels, points, 2), weights: (B, Q, heads, levels, points).
    """
    (batch, cells, heads, width), (queries, points) = values.shape, (locations.shape[1], locations.shape[4])
    above = above.contiguous()
    to_locations = torch.empty(locations.shape, dtype=locations.dtype, device=values.device)
    to_weights = torch.empty(weights.shape, dtype=weights.dtype, device=values.device)
    corners = (*weights.shape, 4) if at_values else (1,)
    keys = torch.empty(corners, dtype=torch.int32, device=values.device)
    shares = torch.empty(corners, device=values.device)
    with torch.cuda.device_of(values):
        _at_points[triton.cdiv(queries, QUERIES), heads, batch](
            above, values, grids_of(shapes, values.device), locations.contiguous(), weights.contiguous(),
            to_locations, to_weights, keys, shares,
            queries, heads, width, len(shapes), points, cells, *values.stride(),
            keeps=at_values, tile=QUERIES, block=triton.next_power_of_2(width),
        )  # fmt: skip
        if not at_values:
            return None, to_locations, to_weights
        count = batch * heads * cells
        keys, order = keys.view(-1).sort(stable=True)
        starts = torch.searchsorted(keys, torch.arange(count + 1, dtype=torch.int32, device=values.device))
        to_values = torch.empty(values.shape, dtype=values.dtype, device=values.device)
        _at_values[(triton.cdiv(count, CELLS),)](
            above, order, starts, shares, to_values, count, len(shapes) * points * 4, heads, width, cells,
            tile=CELLS, block=triton.next_power_of_2(width),
        )  # fmt: skip
    return to_values, to_locations, to_weights


@triton.jit(do_not_specialize=["queries", "heads", "width", "levels", "points", "cells", "step_picture", "step_cell"])
def _at_points(
    above, values, grids, locations, weights, to_locations, to_weights, keys, shares,
    queries, heads, width, levels, points, cells, step_picture, step_cell, step_head, step_channel,
    keeps: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Some queries of a picture, for one head; keeps each corner's cell and share if asked to."""
    picture, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    query, channel = tl.program_id(0) * tile + tl.arange(0, tile), tl.arange(0, block)
    asked, kept = query < queries, (channel < width)[None, :]
    row = (picture * queries + query) * heads + head
    plane = values + picture * step_picture + head * step_head + channel[None, :] * step_channel  # (1, block)
    arrived = tl.load(above + row[:, None] * width + channel[None, :], mask=asked[:, None] & kept, other=0.0)
    arrived = arrived.to(tl.float32)
    for level in range(0, levels):
        height, across = tl.load(grids + level * 3), tl.load(grids + level * 3 + 1)
        start = tl.load(grids + level * 3 + 2)
        for point in range(0, points):
            at = (row * levels + level) * points + point
            weight = tl.load(weights + at, mask=asked, other=0.0).to(tl.float32)
            x = tl.load(locations + at * 2, mask=asked, other=0.0).to(tl.float32) * across - 0.5
            y = tl.load(locations + at * 2 + 1, mask=asked, other=0.0).to(tl.float32) * height - 0.5
            left, share_x = cell_before(x, across)
            upper, share_y = cell_before(y, height)
            sampled, slope_x, slope_y = share_x * 0, share_x * 0, share_x * 0
            for corner in tl.static_range(4):
                cell, inside = corner_cell(left + corner % 2, upper + corner // 2, across, height, asked)
                part_x, part_y = share_x if corner % 2 else 1 - share_x, share_y if corner // 2 else 1 - share_y
                read = tl.load(plane + (start + cell)[:, None] * step_cell, mask=inside[:, None] & kept, other=0.0)
                product = tl.sum(arrived * read.to(tl.float32), axis=1)
                sampled += part_x * part_y * product
                slope_x += part_y * (product if corner % 2 else -product)
                slope_y += part_x * (product if corner // 2 else -product)
                if keeps:
                    key = ((picture * heads + head) * cells + start + cell).to(tl.int32)
                    nowhere = tl.num_programs(2) * heads * cells  # behind all cells
                    tl.store(keys + at * 4 + corner, tl.where(inside, key, nowhere), mask=asked)
                    tl.store(shares + at * 4 + corner, part_x * part_y * weight, mask=asked)
            tl.store(to_weights + at, sampled.to(to_weights.dtype.element_ty), mask=asked)
            kind = to_locations.dtype.element_ty
            tl.store(to_locations + at * 2, (weight * slope_x * across).to(kind), mask=asked)
            tl.store(to_locations + at * 2 + 1, (weight * slope_y * height).to(kind), mask=asked)


@triton.jit(do_not_specialize=["count", "corners", "heads", "width", "cells"])
def _at_values(
    above, order, starts, shares, to_values, count, corners, heads, width, cells,
    tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Some cells, each of one head: corner by corner, in the order of the points."""
    key, channel = tl.program_id(0) * tile + tl.arange(0, tile), tl.arange(0, block)
    owned, kept = key < count, (channel < width)[None, :]
    start = tl.load(starts + key, mask=owned, other=0)
    touching = tl.load(starts + key + 1, mask=owned, other=0) - start
    total = tl.zeros((tile, block), tl.float32)
    for number in range(0, tl.max(touching, axis=0)):
        there = number < touching
        corner = tl.load(order + start + number, mask=there, other=0)
        share = tl.load(shares + corner, mask=there, other=0.0)
        place = above + (corner // corners)[:, None] * width + channel[None, :]
        total += share[:, None] * tl.load(place, mask=there[:, None] & kept, other=0.0).to(tl.float32)
    picture, head, cell = (key // (heads * cells)).to(tl.int64), key // cells % heads, key % cells
    target = to_values + ((picture * cells + cell) * heads + head)[:, None] * width + channel[None, :]
    tl.store(target, total.to(to_values.dtype.element_ty), mask=owned[:, None] & kept)

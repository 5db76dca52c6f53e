"""Biases on attention that depend on how far apart two cells are: BEiT's table and SAM's two tables."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.layers.position import Grid


def relation_index(grid: Grid, *, device: torch.device) -> Tensor:
    """(1 + h * w, 1 + h * w): the row of BEiT's table for every pair of tokens, the class token first.

    The table has (2 h - 1) * (2 w - 1) rows for pairs of cells, then class to cell, cell to class, class to class.
    """
    height, width = grid
    down = torch.arange(height, device=device)
    across = torch.arange(width, device=device)
    rows = down[:, None] - down[None, :] + height - 1  # (h, h)
    columns = across[:, None] - across[None, :] + width - 1  # (w, w)
    pairs = rows[:, None, :, None] * (2 * width - 1) + columns[None, :, None, :]  # (h, w, h, w)
    cells = (2 * height - 1) * (2 * width - 1)
    index = F.pad(pairs.reshape(height * width, height * width), (1, 0, 1, 0))  # (1 + h * w, 1 + h * w)
    place = torch.arange(height * width + 1, device=device)
    from_class, to_class = place[:, None] == 0, place[None, :] == 0
    index = torch.where(from_class, cells, torch.where(to_class, cells + 1, index))
    return torch.where(from_class & to_class, cells + 2, index)


def resize_relations(table: Tensor, stored: int, grid: Grid) -> Tensor:
    """table: ((2 stored - 1)**2 + 3, heads) -> the rows of another grid, bilinear; the last three stay."""
    if not torch.compiler.is_exporting() and grid == (stored, stored):
        return table
    side, heads = 2 * stored - 1, table.shape[1]
    square = table[:-3].reshape(1, side, side, heads).permute(0, 3, 1, 2)  # (1, heads, side, side)
    size = (2 * grid[0] - 1, 2 * grid[1] - 1)
    resized = F.interpolate(square, size=size, mode="bilinear", align_corners=False)
    return torch.cat([resized.flatten(2)[0].mT, table[-3:]])  # (rows, heads)


def decomposed_bias(q: Tensor, table_down: Tensor, table_across: Tensor, grid: Grid) -> Tensor:
    """q: (B, heads, h * w, d) -> (B, heads, h * w, h * w): what a query says to each row and to each column.

    The tables, (2 n - 1, d), are resized linearly where the grid isn't theirs (MViTv2, https://arxiv.org/abs/2112.01526).
    """
    height, width = grid
    place = torch.arange(height * width, device=q.device)
    down = _to_each(q, table_down, place // width, height)  # (B, heads, h * w, h)
    across = _to_each(q, table_across, place % width, width)  # (B, heads, h * w, w)
    return (down[..., :, None] + across[..., None, :]).flatten(3)  # (B, heads, h * w, h * w)


def _to_each(q: Tensor, table: Tensor, place: Tensor, count: int) -> Tensor:
    """q: (B, heads, N, d), place: (N,) on one axis of `count` cells -> (B, heads, N, count)."""
    if torch.compiler.is_exporting() or table.shape[0] != 2 * count - 1:
        table = F.interpolate(table.mT[None], size=2 * count - 1, mode="linear", align_corners=False)[0].mT
    apart = place[:, None] - torch.arange(count, device=q.device)[None, :] + count - 1  # (N, count)
    # Every distance first: einsum with each query's own rows would tie an exported graph to one grid.
    return (q @ table.mT).gather(-1, apart.expand(*q.shape[:2], -1, -1))

"""Rotary positions in two dimensions: queries and keys turned by angles that grow along each axis.

RoFormer (https://arxiv.org/abs/2104.09864), as EVA-02 (https://arxiv.org/abs/2303.11331) and DINOv3
(https://arxiv.org/abs/2508.10104) use it.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from vitdense.layers.position import Grid

Rotary = Literal["index", "unit"]

# Places and bands are rounded to float32 whatever the model's precision, as both authors keep them.
_PRECISION = torch.float32


def rotary_tables(
    kind: Rotary,
    head_dim: int,
    grid: Grid,
    *,
    stored_grid: int,
    num_prefix: int,
    like: Tensor,
    periods: tuple[float, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (num_prefix + h * w, head_dim) each; prefix tokens are left where they are.

    "index" (EVA-02) counts cells, scaled so that any grid spans `stored_grid` of them; neighbouring channels pair.
    "unit" (DINOv3) places the cells' centres in -1..1; the two channels of a pair are half of the head apart.
    `periods` stand in for the computed ones of "unit". Angles are in the precision of `like`, float32 at least.
    """
    device, precision = like.device, torch.promote_types(like.dtype, _PRECISION)
    down, across = (_coordinates(kind, count, stored_grid, device).to(precision) for count in grid)
    bands = _bands(kind, head_dim, device, periods).to(precision)
    angles = torch.cat(
        [
            _angles(kind, down, bands)[:, None].expand(-1, grid[1], -1),
            _angles(kind, across, bands)[None].expand(grid[0], -1, -1),
        ],
        dim=2,
    ).flatten(0, 1)  # (h * w, head_dim / 2)
    angles = angles.repeat_interleave(2, dim=1) if kind == "index" else angles.repeat(1, 2)  # (h * w, head_dim)
    still = angles.new_zeros(num_prefix, head_dim)
    angles = torch.cat([still, angles])  # (num_prefix + h * w, head_dim)
    cosines, sines = angles.cos(), angles.sin()
    return (cosines.to(_PRECISION), sines.to(_PRECISION)) if kind == "index" else (cosines, sines)


def axial_tables(head_dim: int, grid: Grid, *, num_prefix: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (num_prefix + cells, head_dim) each, of counted cells along each axis of a grid of any rank.

    The axes take equal shares of the channels, whole pairs of them; what is left stays as it is. Bands are tiled over
    a share where pairs are neighbours, so that the two of a pair turn by different angles: V-JEPA 2 was trained so
    (https://arxiv.org/abs/2506.09985).
    """
    precision = torch.promote_types(like.dtype, _PRECISION)
    half = head_dim // len(grid) // 2
    bands = 1.0 / 10000.0 ** (torch.arange(half, dtype=precision, device=like.device) / half)
    shares = []
    for axis, count in enumerate(grid):
        places = torch.arange(count, dtype=precision, device=like.device)
        angles = (places[:, None] * bands).repeat(1, 2)  # (count, 2 * half)
        shape = [1] * len(grid)
        shape[axis] = count
        shares.append(angles.reshape(*shape, -1).expand(*grid, -1))
    shares.append(shares[0].new_zeros(*grid, head_dim - 2 * half * len(grid)))
    angles = torch.cat(shares, dim=-1).flatten(0, -2)  # (cells, head_dim)
    angles = torch.cat([angles.new_zeros(num_prefix, head_dim), angles])  # (num_prefix + cells, head_dim)
    return angles.cos(), angles.sin()


def rotate_neighbours(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """heads: (B, heads, N, d) turned in the planes of channels (0, 1), (2, 3), ..."""
    turned = torch.stack([-heads[..., 1::2], heads[..., ::2]], dim=-1).flatten(-2)  # (B, heads, N, d)
    return (heads * cosines + turned * sines).to(heads.dtype)


def rotate_halves(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """heads: (B, heads, N, d) turned in the planes of channels (0, d / 2), (1, d / 2 + 1), ..."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (heads * cosines + turned * sines).to(heads.dtype)


def _coordinates(kind: Rotary, count: int, stored: int, device: torch.device) -> Tensor:
    if kind == "index":
        return torch.arange(count, device=device).to(_PRECISION) / count * stored
    return 2.0 * ((torch.arange(count, device=device).to(_PRECISION) + 0.5) / count) - 1.0


def unit_periods(head_dim: int, device: torch.device) -> Tensor:
    """(head_dim / 4,): DINOv3's, from 1 to nearly 100."""
    periods: Tensor = 100.0 ** (2.0 * _steps(head_dim, device) / (head_dim // 2))
    return periods


def _bands(kind: Rotary, head_dim: int, device: torch.device, periods: tuple[float, ...] | None) -> Tensor:
    """(head_dim / 4,): frequencies for "index", periods for "unit"."""
    if periods is not None:
        return torch.tensor(periods, dtype=_PRECISION, device=device)
    if kind == "unit":
        return unit_periods(head_dim, device)
    frequencies: Tensor = 1.0 / (10000.0 ** (_steps(head_dim, device) / (head_dim // 4)))
    return frequencies


def _steps(head_dim: int, device: torch.device) -> Tensor:
    return torch.arange(head_dim // 4, device=device).to(_PRECISION)


def _angles(kind: Rotary, places: Tensor, bands: Tensor) -> Tensor:
    return places[:, None] * bands if kind == "index" else 2 * math.pi * places[:, None] / bands

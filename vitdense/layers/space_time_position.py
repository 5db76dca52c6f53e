"""Absolute positions with a time axis: learned tables resized in time and in space, waves by place and by index."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.layers.position import Grid, Interpolation, resize_positions

TimeInterpolation = Literal["linear", "nearest"]


def resize_times(table: Tensor, count: int, *, interpolation: TimeInterpolation = "linear") -> Tensor:
    """table: (1, t, C) -> (1, count, C), in the table's precision but never below float32."""
    # An exported graph resizes always (a no-op at the stored length), so that it isn't pinned to one length.
    if not torch.compiler.is_exporting() and table.shape[1] == count:
        return table
    precise = table.to(torch.promote_types(table.dtype, torch.float32)).mT  # (1, C, t)
    return F.interpolate(precise, size=count, mode=interpolation).mT.to(table.dtype)  # (1, count, C)


def resize_volume(
    table: Tensor,
    grid: Grid,
    *,
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
    time_interpolation: TimeInterpolation = "linear",
) -> Tensor:
    """table: (1, t, h, w, C) -> (1, T, H, W, C) for `grid` (T, H, W): each time in space, then each place in time."""
    times, height, width = grid
    planes = resize_positions(table[0], (height, width), interpolation=interpolation, antialias=antialias)
    rows = resize_times(planes.flatten(1)[None], times, interpolation=time_interpolation)  # (1, T, H * W * C)
    return torch.unflatten(rows, 2, (height, width, -1))  # (1, T, H, W, C)


def sincos_volume(dim: int, grid: Grid, *, device: torch.device) -> Tensor:
    """(1, t, h, w, dim): sines and cosines of time, row and column, a third of the channels each (float64).

    A share is the next even number of channels, and the last share is cut, as V-JEPA's authors do where all axes are
    to have equal power (https://arxiv.org/abs/2404.08471).
    """
    half = -(-dim // 6)
    bands = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=device) / half)
    shares = []
    for axis, count in enumerate(grid):
        angles = torch.arange(count, dtype=torch.float64, device=device)[:, None] * bands  # (count, half)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (count, 2 * half)
        shape = [1] * len(grid)
        shape[axis] = count
        shares.append(waves.reshape(*shape, -1).expand(*grid, -1))
    return torch.cat(shares, dim=-1)[None, ..., :dim]  # (1, t, h, w, dim)


def waves_by_index(dim: int, grid: Grid, *, device: torch.device) -> Tensor:
    """(1, t, h, w, dim): sines and cosines of a patch's number in the row of all patches, as VideoMAE fixes them.

    They are made for the grid at hand, so that a place has other waves on another grid; float32, as its authors keep
    them (https://arxiv.org/abs/2203.12602).
    """
    times, height, width = grid
    number = torch.arange(times * height * width, dtype=torch.float64, device=device)
    pairs = torch.arange(dim, dtype=torch.float64, device=device).div(2, rounding_mode="floor")
    angles = number[:, None] / 10000.0 ** (2.0 * pairs / dim)  # (N, dim)
    even = torch.arange(dim, device=device) % 2 == 0
    waves = torch.where(even, angles.sin(), angles.cos()).float()
    return torch.unflatten(waves, 0, grid)[None]  # (1, t, h, w, dim)

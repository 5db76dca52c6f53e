"""Absolute positions: learned tables and their resizing, which differs between checkpoint families, and 2-D sin-cos."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["bicubic", "bilinear", "nearest"]
# Rows and columns of cells (h, w); those of clips and volumes have times or slices before them, (t, h, w).
Grid = tuple[int, ...]


def resize_positions(
    table: Tensor,
    size: Grid,
    *,
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
    offset: float = 0.0,
) -> Tensor:
    """table: (n, h, w, C) -> (n, H, W, C) for `size` (H, W), in the table's precision but never below float32.

    `offset` is added to H and W in the scale only, as DINOv2's authors do (0.1): cells then lie a little elsewhere.
    """
    # An exported graph resizes always (a no-op at the stored size), so that it isn't pinned to one size.
    if not torch.compiler.is_exporting() and tuple(table.shape[1:3]) == tuple(size):
        return table
    precise = table.to(torch.promote_types(table.dtype, torch.float32)).permute(0, 3, 1, 2)  # (n, C, h, w)
    if offset and torch.compiler.is_exporting():
        down, across = (
            _cubic_weights(wanted, stored, offset) for wanted, stored in zip(size, table.shape[1:3], strict=True)
        )
        resized = down.to(precise) @ precise @ across.to(precise).mT  # (n, C, H, W)
    elif offset:
        scale = tuple((wanted + offset) / stored for wanted, stored in zip(size, table.shape[1:3], strict=True))
        resized = F.interpolate(precise, scale_factor=scale, mode=interpolation, antialias=antialias)
    elif interpolation == "nearest":
        resized = F.interpolate(precise, size=size, mode="nearest")
    else:
        resized = F.interpolate(precise, size=size, mode=interpolation, align_corners=False, antialias=antialias)
    return resized.permute(0, 2, 3, 1).to(table.dtype)  # (n, H, W, C)


def _cubic_weights(wanted: int, stored: int, offset: float) -> Tensor:
    """(wanted, stored): what F.interpolate gives each stored cell in each wanted one, bicubic at an offset scale.

    interpolate takes the scale as a number, which an exported graph would hold for all sizes.
    """
    place = torch.arange(wanted, dtype=torch.float64)
    count = torch.ones(wanted, dtype=torch.float64).sum()
    source = (place + 0.5) * (stored / (count + offset)) - 0.5
    taps = source.floor()[:, None] + torch.arange(-1, 3)  # (wanted, 4)
    apart = (source[:, None] - taps).abs()
    # Keys' kernel with a = -0.75: near taps, then far ones.
    near = (1.25 * apart - 2.25) * apart.square() + 1
    far = -0.75 * (((apart - 5) * apart + 8) * apart - 4)
    weights = torch.where(apart <= 1, near, far)
    cells = taps.clamp(0, stored - 1).long()
    return torch.zeros(wanted, stored, dtype=torch.float64).scatter_add(1, cells, weights)


def sincos_positions(dim: int, grid: Grid, *, device: torch.device) -> Tensor:
    """(1, h, w, dim), a quarter each of sin x, cos x, sin y, cos y, as MAE and MoCo v3 fix them (float64)."""
    assert dim % 4 == 0, f"2-D sin-cos positions need a multiple of 4 channels, not {dim}"
    bands = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim // 4))
    waves = []
    for axis in (1, 0):
        angles = torch.arange(grid[axis], dtype=torch.float64, device=device)[:, None] * bands  # (n, dim / 4)
        waves.append(torch.cat([angles.sin(), angles.cos()], dim=1))  # (n, dim / 2)
    across, down = waves
    return torch.cat([across[None].expand(grid[0], -1, -1), down[:, None].expand(-1, grid[1], -1)], dim=2)[
        None
    ]  # (1, h, w, dim)

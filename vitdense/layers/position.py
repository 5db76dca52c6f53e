"""Learned position tables and their resizing; the checkpoint families differ in how they resize, so it is an option."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["bicubic", "bilinear"]


def resize_positions(
    table: Tensor, size: tuple[int, int], *, interpolation: Interpolation = "bicubic", antialias: bool = True
) -> Tensor:
    """table: (1, h, w, C) -> (1, H, W, C) for `size` (H, W), in the table's precision but never below float32."""
    # An exported graph resizes always (a no-op at the stored size), so that it isn't pinned to one size.
    if not torch.compiler.is_exporting() and tuple(table.shape[1:3]) == tuple(size):
        return table
    precise = table.to(torch.promote_types(table.dtype, torch.float32)).permute(0, 3, 1, 2)  # (1, C, h, w)
    resized = F.interpolate(precise, size=size, mode=interpolation, align_corners=False, antialias=antialias)
    return resized.permute(0, 2, 3, 1).to(table.dtype)  # (1, H, W, C)

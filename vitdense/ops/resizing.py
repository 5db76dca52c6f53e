"""Bilinear resizing and full precision, as heads, losses and inference need them of maps and logits."""

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(maps: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """maps (B, C, h, w) -> (B, C, H, W), bilinear; untouched where the size is right already."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


def full_precision(maps: Tensor) -> Tensor:
    """Half precision to fp32; fp32 and fp64 as they are."""
    return maps.to(torch.promote_types(maps.dtype, torch.float32))

"""Volumes and clips in blended sliding windows with a time axis."""

from collections.abc import Callable
from itertools import product
from types import EllipsisType

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.inference.blending import blend_weights
from vitdense.inference.config import InferenceConfig, window_starts

Size3d = tuple[int, int, int]


def to_size(maps: Tensor, size: Size3d) -> Tensor:
    """maps: (B, C, t, h, w) -> (B, C, T, H, W), trilinear; untouched where the size is right already."""
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="trilinear", align_corners=False)


def slide_over_volume(look: Callable[[Tensor], Tensor], images: Tensor, config: InferenceConfig) -> Tensor:
    """images: (B, C, D, H, W) -> the output by voxel (B, K, D, H, W), each the weighted mean of all windows.

    `look`: (windows * B, C, d, h, w) -> (windows * B, K, d', h', w'), in full precision.
    """
    count, _, *sides = images.shape
    windows, strides = _extents(config, sides[0])
    size: Size3d = (min(windows[0], sides[0]), min(windows[1], sides[1]), min(windows[2], sides[2]))
    weights = blend_weights(config.blend, size).to(images.device)
    covered = torch.zeros(*sides, device=images.device)
    total: Tensor | None = None
    starts = (window_starts(side, window, stride) for side, window, stride in zip(sides, size, strides, strict=True))
    places = list(product(*starts))
    for first in range(0, len(places), config.window_batch):
        areas = [_area(place, size) for place in places[first : first + config.window_batch]]
        maps = to_size(look(torch.cat([images[area] for area in areas])), size)
        if total is None:
            total = maps.new_zeros(count, maps.shape[1], *sides)
        for area, window in zip(areas, maps.chunk(len(areas)), strict=True):
            total[area].addcmul_(window, weights.to(window.dtype))
            covered[area[-3:]] += weights
    assert total is not None
    return total.div_(covered)


def _area(place: tuple[int, ...], size: Size3d) -> tuple[EllipsisType, slice, slice, slice]:
    deep, tall, wide = (slice(start, start + side) for start, side in zip(place, size, strict=True))
    return ..., deep, tall, wide


def _extents(config: InferenceConfig, depth: int) -> tuple[Size3d, Size3d]:
    """Windows and strides (depth, height, width); all slices where no depth is set."""
    (tall, wide), (down, across) = config.window_and_stride()
    deep = config.window_depth or depth
    along = config.stride_depth or max(deep * 2 // 3, 1)
    return (deep, tall, wide), (along, down, across)

"""Frames as a backbone sees them: resized, and as unit vectors on a grid."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.ops.resizing import full_precision
from vitdense.propagation.config import PropagationConfig

Size = tuple[int, int]


class Features(NamedTuple):
    """vectors (h, w, C) of unit length, a cell for `stride` x `stride` pixels of a frame resized to `size` (H, W)."""

    vectors: Tensor
    stride: int
    size: Size


def features_of(backbone: Backbone, frame: NDArray[np.uint8], config: PropagationConfig) -> Features:
    """frame: (H, W, 3) -> its features; UserError where the backbone has no maps of pictures, or not this level."""
    size = fitted_size((frame.shape[0], frame.shape[1]), config)
    # Of all ways to resize, the published one: bilinear, of 8 bits, without a filter before.
    seen = frame if frame.shape[:2] == size else cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR)
    like = next(backbone.parameters())
    mean, std = (like.new_tensor(each)[:, None, None] for each in (backbone.mean, backbone.std))
    image = torch.from_numpy(np.array(seen.transpose(2, 0, 1))).to(like) / 255  # (3, H, W)
    maps, stride = _look(backbone, ((image - mean) / std)[None], config.level)
    return Features(F.normalize(full_precision(maps[0]), dim=-1), stride, size)


def fitted_size(size: Size, config: PropagationConfig) -> Size:
    """(H, W) that a frame of (H, W) is resized to: the short side to `short_side`, the long one down to a multiple."""
    if config.short_side is None:
        return size
    long = max(config.short_side * max(size) // min(size) // config.multiple, 1) * config.multiple
    return (config.short_side, long) if size[0] <= size[1] else (long, config.short_side)


def check_backbone(backbone: Backbone, level: int | None) -> None:
    """UserError where frames can't be looked at one by one, or where there is no such level."""
    if any(each.time_stride is not None for each in backbone.levels):
        raise UserError(f"{type(backbone).__name__} takes clips; masks are propagated by a backbone of pictures")
    if len(backbone.mean) != 3:
        raise UserError(f"frames have 3 channels, and {type(backbone).__name__} takes {len(backbone.mean)}")
    if level is not None and not -len(backbone.levels) <= level < len(backbone.levels):
        raise UserError(f"no level {level}: there are {len(backbone.levels)}, 0 to {len(backbone.levels) - 1}")


def _look(backbone: Backbone, images: Tensor, level: int | None) -> tuple[Tensor, int]:
    """images: (B, 3, H, W), normalised -> maps (B, h, w, C) and their stride."""
    if level is not None:
        return backbone(images)[level].movedim(1, -1), backbone.levels[level].stride
    patches, _, grid = backbone.tokens(images)
    for stride in reversed([each.stride for each in backbone.levels]):
        if grid == tuple(-(-side // stride) for side in images.shape[-2:]):
            return patches.view(len(patches), *grid, -1), stride
    raise UserError(
        f"the last layer of {type(backbone).__name__} has a stride that none of its levels has: choose one by level=N"
    )

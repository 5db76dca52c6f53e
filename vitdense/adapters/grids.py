"""What adapters do with grids of cells: check them, bring them to other strides, cut them to the picture."""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import Level
from vitdense.errors import UserError
from vitdense.layers.embed import crop_rows_and_columns

STRIDES = (4, 8, 16, 32)
LATTICE = 16


def check_plain(name: str, levels: tuple[Level, ...]) -> None:
    """Refuse all but maps of one stride."""
    strides = [level.stride for level in levels]
    if len(set(strides)) != 1:
        helper = "fpn" if grow(strides) else "reassemble"
        raise UserError(
            f"{name} makes a pyramid from a plain backbone, but this one has strides {strides} already: "
            f"leave the adapter out, or take `adapter: {{name: {helper}}}`"
        )


def check_pyramid(name: str, levels: tuple[Level, ...]) -> None:
    """Refuse all but maps whose strides grow by whole numbers."""
    strides = [level.stride for level in levels]
    if not grow(strides):
        helper = "reassemble" if len(set(strides)) > 1 and strides[-2] == strides[-1] else "simple_pyramid"
        raise UserError(
            f"{name} needs a pyramid: at least 2 levels, finest first, each stride a multiple of the one before; "
            f"got strides {strides}. To make a pyramid take `adapter: {{name: {helper}}}`"
        )


def grow(strides: Sequence[int]) -> bool:
    """Whether there are two strides or more, each a multiple of the one before and not the same."""
    return len(strides) > 1 and all(coarse > fine and coarse % fine == 0 for fine, coarse in pairwise(strides))


def check_pictures(name: str, levels: tuple[Level, ...]) -> None:
    """Refuse maps with a time axis."""
    if any(level.time_stride is not None for level in levels):
        raise UserError(
            f"{name} works between the blocks of a picture network, and these levels have a time axis: "
            "take one that works on maps, such as `adapter: {name: simple_pyramid}`"
        )


def lattice(stride: int) -> int:
    """The stride that leads to STRIDES by powers of two: its own, or 16 where it has none, such as 14."""
    return stride if stride in STRIDES else LATTICE


def cells(pixels: int, stride: int) -> int:
    """How many cells of `stride` pixels cover `pixels`."""
    return (pixels + stride - 1) // stride


def resample(maps: Tensor, stride: int, target: int) -> Tensor:
    """maps: (B, C, h, w), a cell for `stride` pixels -> (B, C, h', w'), a cell for `target` pixels, bilinear.

    Both grids start at the picture's corner and cell j reads at pixel (j + 0.5) * target, whatever the sizes;
    interpolating between sizes that aren't in the ratio of the strides would stretch one grid over the other. At
    least the whole picture is covered.
    """
    if stride == target:
        return maps
    period = target // gcd(stride, target)
    height, width = (cells(size, period) * period for size in maps.shape[-2:])
    bottom, right = height - maps.shape[-2], width - maps.shape[-1]
    # An exported graph pads always: asking whether it must would pin the sizes it was traced with.
    if torch.compiler.is_exporting() or bottom or right:
        maps = F.pad(maps, (0, right, 0, bottom), mode="replicate")
    return F.interpolate(maps, size=(height * stride // target, width * stride // target), mode="bilinear")


def crop(maps: Tensor, height: int, width: int) -> Tensor:
    """maps: (B, C, h, w) -> (B, C, height, width), what lies beyond the picture taken off."""
    return crop_rows_and_columns(maps, height, width, channels_last=False)


def crop_to(maps: Tensor, images: Tensor, stride: int) -> Tensor:
    """maps: (B, C, h, w), a cell for `stride` pixels -> (B, C, ceil(H / stride), ceil(W / stride))."""
    return crop(maps, cells(images.shape[-2], stride), cells(images.shape[-1], stride))

"""From stored voxels to what a model is given: intensities, spacing, crops and mirrors."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import IGNORE, DataConfig
from vitdense.data.volumes.files import Spacing, Voxels
from vitdense.errors import DataError

Extent = tuple[int, int, int]
Part = tuple[slice, slice, slice]


class CropConfig(DataConfig):
    """`window` is the range of intensities that becomes 0 to 1, what lies outside is cut off: of CT in Hounsfield
    units; null for integers of 8 bits, whose range is known. `on_nan` says what numbers that are none become: the
    lowest of the window, or an error.

    `spacing` resamples volumes to millimetres (between slices, rows and columns), where files say their own. Training
    takes crops (D, H, W), whose middle lies with the chance `foreground` on a voxel of a class above 0; smaller volumes
    are filled with 0, without label. `flip_prob` is the chance of a mirror along each axis, `shift` the largest change
    of all intensities.
    """

    window: tuple[float, float] | None = (-175.0, 250.0)
    on_nan: Literal["lowest", "stop"] = "lowest"
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    crop: tuple[PositiveInt, PositiveInt, PositiveInt] | None = (96, 96, 96)
    foreground: float = Field(default=0.5, ge=0.0, le=1.0)
    flip_prob: float = Field(default=0.5, ge=0.0, le=1.0)
    shift: NonNegativeFloat = 0.1

    @model_validator(mode="after")
    def _in_order(self) -> "CropConfig":
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window {self.window}: the lower end first")
        return self


def as_image(path: Path, voxels: Voxels, config: CropConfig) -> Tensor:
    """voxels: (D, H, W) or (C, D, H, W) -> (C, D, H, W) fp32 in 0..1; DataError where its numbers can't be used."""
    values = np.asarray(voxels)
    values = values[None] if values.ndim == 3 else values
    if config.window is None:
        if values.dtype != np.uint8:
            raise DataError(f"{path}: holds {values.dtype}, whose range is not known: set data.window=[LOWEST,HIGHEST]")
        return torch.from_numpy(values.astype(np.float32) / 255)
    low, high = config.window
    scaled = (values.astype(np.float32) - low) / np.float32(high - low)
    strange = np.isnan(scaled)
    if strange.any():
        if config.on_nan == "stop":
            raise DataError(f"{path}: {int(strange.sum())} voxels are no numbers; data.on_nan=lowest gives them {low}")
        scaled[strange] = 0
    return torch.from_numpy(np.clip(scaled, 0, 1))  # infinite ones are cut off like others


def resample(image: Tensor, mask: Tensor, spacing: Spacing, wanted: Spacing) -> tuple[Tensor, Tensor]:
    """image (C, D, H, W), mask (D, H, W) -> the same at another spacing: trilinear, and the nearest label."""
    size = [max(round(side * have / want), 1) for side, have, want in zip(mask.shape, spacing, wanted, strict=True)]
    if tuple(size) == tuple(mask.shape):
        return image, mask
    labels = F.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")[0, 0].to(mask.dtype)
    return F.interpolate(image[None], size=size, mode="trilinear", align_corners=False)[0], labels


def draw_part(labels: Voxels, config: CropConfig, generator: np.random.Generator) -> Part:
    """labels: (D, H, W) -> the part of it that a training crop shows, smaller than the crop at no side but the
    volume's own."""
    size: Extent = (labels.shape[0], labels.shape[1], labels.shape[2])
    crop = config.crop or size
    chances = generator.random(2)
    rooms = [max(side - want, 0) for side, want in zip(size, crop, strict=True)]
    starts = [int(generator.integers(room + 1)) for room in rooms]
    if chances[0] < config.foreground:
        places = np.flatnonzero(np.asarray(labels) > 0)
        if len(places):
            middle = np.unravel_index(places[int(chances[1] * len(places))], size)
            starts = [int(np.clip(at - want // 2, 0, room)) for at, want, room in zip(middle, crop, rooms, strict=True)]
    down, along, across = (
        slice(start, min(start + want, side)) for start, want, side in zip(starts, crop, size, strict=True)
    )
    return down, along, across


def augment(image: Tensor, mask: Tensor, config: CropConfig, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """image (C, d, h, w), mask (d, h, w) -> both at the crop's size, mirrored, and the image lighter or darker."""
    flips, shift = generator.random(3) < config.flip_prob, float(generator.uniform(-1, 1)) * config.shift
    axes = [axis for axis in range(3) if flips[axis]]
    image, mask = image.flip([1 + axis for axis in axes]), mask.flip(axes)
    if shift:
        image = (image + shift).clamp(0, 1)
    if config.crop is None:
        return image, mask
    lacking = [want - side for want, side in zip(config.crop, mask.shape, strict=True)]
    rims = [part for lack in reversed(lacking) for part in (0, lack)]
    return F.pad(image, rims), F.pad(mask, rims, value=IGNORE)


def whole_of(shape: tuple[int, ...]) -> Part:
    """All of a volume."""
    return slice(0, shape[-3]), slice(0, shape[-2]), slice(0, shape[-1])

"""Whole pictures at one size, as contrastive models and classifiers read them: CLIP's and open_clip's transforms."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from vitdense.contracts import DataConfig
from vitdense.data.images import read_shrunken, read_size
from vitdense.errors import DataError
from vitdense.preprocessing import Preprocess
from vitdense.registry import Config

Chance = float
TRIES = 10


class Picture(NamedTuple):
    """A file, or the `content` of one that has the name `path` somewhere."""

    path: str | Path
    content: bytes | None = None


class ViewAugment(Config):
    """A crop of `scale` of the area and of an aspect in `ratio` (width / height), stretched to the size; scale null is
    the validation's view. `color_jitter` (brightness, contrast, saturation, hue) and grey happen with their chances,
    which have the names of open_clip's AugmentationCfg; `flip_prob` is the chance of a mirrored picture.
    """

    scale: tuple[PositiveFloat, PositiveFloat] | None = (0.9, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    flip_prob: Chance = Field(default=0.0, ge=0.0, le=1.0)
    color_jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.4, 0.4, 0.4, 0.1)
    color_jitter_prob: Chance = Field(default=0.0, ge=0.0, le=1.0)
    gray_scale_prob: Chance = Field(default=0.0, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _in_order(self) -> "ViewAugment":
        if self.scale is not None and not self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale}: shares of the area, the smaller first, at most 1")
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio {self.ratio}: the smaller first")
        if self.color_jitter[3] > 0.5:
            raise ValueError(f"color_jitter {self.color_jitter}: the hue turns by at most 0.5")
        return self


class PictureDataConfig(DataConfig):
    """`size` is a side or (H, W); `resize` and `interpolation` say how validation pictures come to it, `augment` what
    training does. `fast_decode` divides training JPEGs by 2, 4 or 8 while they are decoded, where they stay larger
    than the size.
    """

    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    augment: ViewAugment = ViewAugment()
    fast_decode: bool = False
    seed: NonNegativeInt = 0

    def views(self) -> "Views":
        """What reads the pictures."""
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        return Views(Preprocess(size, self.resize, self.interpolation), self.augment, fast_decode=self.fast_decode)


class Views:
    """Pictures in files -> (3, H, W) uint8 of one size."""

    def __init__(self, preprocess: Preprocess, augment: ViewAugment, *, fast_decode: bool = False) -> None:
        self.preprocess, self.augment, self.fast_decode = preprocess, augment, fast_decode

    def whole(self, picture: Picture) -> Tensor:
        """The validation's view."""
        return _planes(self._at_once(picture, self._read(picture, 1)))

    def drawn(self, picture: Picture, generator: np.random.Generator) -> Tensor:
        """A training view; raises DataError where the picture can't be read."""
        image = self._read(picture, self._shrink(picture) if self.fast_decode else 1)
        if self.augment.scale is None:
            image = self._at_once(picture, image)
        else:
            box = crop_box(generator, image.size, self.augment.scale, self.augment.ratio)
            height, width = self.preprocess.size
            image = image.crop(box).resize((width, height), Image.Resampling[self.preprocess.interpolation.upper()])
        return _planes(self._recoloured(image, generator))

    def _read(self, picture: Picture, shrink: int) -> Image.Image:
        return Image.fromarray(read_shrunken(picture.path, shrink, picture.content).pixels)

    def _at_once(self, picture: Picture, image: Image.Image) -> Image.Image:
        """The whole picture at the size."""
        if min(self.preprocess.resized((image.height, image.width))) < 1:
            size = f"{self.preprocess.size[1]} x {self.preprocess.size[0]}"
            raise DataError(f"{picture.path}: {image.width} x {image.height} pixels are too narrow to fit {size}")
        return self.preprocess(image)

    def _shrink(self, picture: Picture) -> int:
        """The largest divisor that leaves the smallest crop at the size or above."""
        share = 1.0 if self.augment.scale is None else math.sqrt(self.augment.scale[0] * self.augment.ratio[0])
        sides = zip(read_size(picture.path, picture.content), self.preprocess.size, strict=True)
        room = min(side * share / wanted for side, wanted in sides)
        return next((shrink for shrink in (8, 4, 2) if room >= shrink), 1)

    def _recoloured(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """All chances are drawn, so that one option does not move the draws of another."""
        from torchvision.transforms import functional

        augment = self.augment
        flips, jitters, greys = generator.random(3) < (
            augment.flip_prob,
            augment.color_jitter_prob,
            augment.gray_scale_prob,
        )
        order, shifts = generator.permutation(4), generator.uniform(-1, 1, 4)
        if flips:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        changes: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
            functional.adjust_brightness,
            functional.adjust_contrast,
            functional.adjust_saturation,
            functional.adjust_hue,
        )
        for place in order if jitters else ():
            strength = float(augment.color_jitter[place] * shifts[place])
            image = changes[place](image, strength if place == 3 else max(0.0, 1 + strength))
        return image.convert("L").convert("RGB") if greys else image


def crop_box(
    generator: np.random.Generator, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in a picture of (W, H), by the rule of torchvision's RandomResizedCrop: ten draws,
    and after them the largest middle part whose aspect is allowed."""
    width, height = size
    for _ in range(TRIES):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(generator.integers(width - wide + 1)), int(generator.integers(height - tall + 1))
            return left, top, left + wide, top + tall
    wide, tall = width, height
    if width / height < ratio[0]:
        tall = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        wide = min(width, max(1, round(height * ratio[1])))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def _planes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())  # (3, H, W)

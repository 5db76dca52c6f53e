"""Training augmentation for dense tasks: scale, crop, flip and colours, drawn from (seed, epoch, index) alone."""

import os
import random
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdense.contracts import IGNORE

Pixels = NDArray[np.uint8]
Mask = NDArray[np.int16]
Labels = TypeVar("Labels", NDArray[np.int16], NDArray[np.float32])
"""A mask of class indices, or depth in metres: both are resized to the nearest pixel, and metres stay metres."""
Values = TypeVar("Values", NDArray[np.uint8], NDArray[np.float32])
"""Pixels of pictures, or of rasters."""

PAD_COLOUR = (124, 116, 104)
"""ImageNet's mean: close to zero after normalisation, which is what padding should look like to a model."""

CROP_TRIES = 10


class Colours(Protocol):
    """Changes colours, not geometry: what it draws depends on the seed of the call alone."""

    def __call__(self, image: Pixels, seed: int) -> Pixels:
        """image: (H, W, 3) -> (H, W, 3)."""


@dataclass(frozen=True)
class Geometry:
    """How a training crop is cut: the picture scaled to (short, long_max), times a factor in `scale`, then cut."""

    crop: tuple[int, int]
    short: int | None = None
    long_max: int | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    category_ratio: float = 0.75
    flip: bool = True


class Augment:
    """(image (H, W, 3), mask (H, W)) -> the same at the crop's size; `unlabelled` where the picture is smaller.

    Pictures of other channels, or of floats, need a `padding` of theirs, and no colours.
    """

    def __init__(
        self,
        geometry: Geometry,
        colours: Colours | None,
        *,
        seed: int,
        unlabelled: int = IGNORE,
        padding: tuple[float, ...] = PAD_COLOUR,
    ) -> None:
        self.geometry, self.colours, self.seed, self.unlabelled = geometry, colours, seed, unlabelled
        self.padding = padding

    def __call__(self, image: Pixels, mask: Labels, *, epoch: int, index: int) -> tuple[Pixels, Labels]:
        """Cut, resize, pad, flip, recolour; equal (seed, epoch, index) give equal pixels in any worker."""
        generator = np.random.default_rng([self.seed, epoch, index])
        image, mask = cut(image, mask, self.geometry, generator)
        if self.geometry.flip and generator.random() < 0.5:
            image, mask = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
        if self.colours is not None:
            image = self.colours(image, int(generator.integers(2**31)))
        height, width = self.geometry.crop
        return pad(image, (height, width), self.padding), pad(mask, (height, width), self.unlabelled)


def base_factor(size: tuple[int, int], short: int | None, long_max: int | None) -> float:
    """The factor that brings (H, W) to a short side of `short`, but no long side above `long_max`; 1 without both."""
    factors = [1.0] if short is None else [short / min(size)]
    if long_max is not None:
        factors.append(long_max / max(size))
    return min(factors)


def cut(image: Pixels, mask: Labels, geometry: Geometry, generator: np.random.Generator) -> tuple[Pixels, Labels]:
    """A random window of the scaled picture: (h, w) <= crop.

    The window is chosen and cut in the original, and only then resized: the same picture as resizing first, up to a
    shift of less than a pixel and interpolation at its rim, for a fraction of the work where the picture is large.
    Albumentations resizes first, which is why this step is our own.
    """
    height, width = mask.shape
    factor = base_factor((height, width), geometry.short, geometry.long_max) * generator.uniform(*geometry.scale)
    window, target = [], []
    for side, crop in zip((height, width), geometry.crop, strict=True):
        scaled = max(1, round(side * factor))
        target.append(min(scaled, crop))
        window.append(min(side, max(1, round(target[-1] / factor))))
    top, left = _place(mask, (window[0], window[1]), geometry.category_ratio, generator)
    rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
    return resize(image[rows, columns], mask[rows, columns], (target[0], target[1]))


def _place(
    mask: NDArray[Any], window: tuple[int, int], category_ratio: float, generator: np.random.Generator
) -> tuple[int, int]:
    """Top and left of a window in which no class covers `category_ratio` of the labelled pixels, if ten tries find one.

    Every second pixel is counted, as that decides the same for a quarter of the time.
    """
    height, width = mask.shape
    free = (height - window[0] + 1, width - window[1] + 1)
    for _ in range(CROP_TRIES):
        top, left = (int(generator.integers(room)) for room in free)
        if category_ratio >= 1 or free == (1, 1):
            break
        counts = np.bincount(mask[top : top + window[0] : 2, left : left + window[1] : 2].ravel() - IGNORE)[1:]
        if np.count_nonzero(counts) > 1 and counts.max() < category_ratio * counts.sum():
            break
    return top, left


def resize(image: Pixels, mask: Labels, size: tuple[int, int]) -> tuple[Pixels, Labels]:
    """To (h, w): pictures by area averaging when they shrink, else linearly; masks by the exactly nearest pixel."""
    height, width = size
    if mask.shape == (height, width):
        return np.ascontiguousarray(image), np.ascontiguousarray(mask)
    # Not INTER_NEAREST: that one takes floor(i * scale), half a pixel off from where the picture is sampled.
    labels = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resize_image(image, size), np.asarray(labels, mask.dtype)


def resize_image(image: Values, size: tuple[int, int]) -> Values:
    """(H, W, C) -> (h, w, C): by area averaging where it shrinks, else linearly."""
    height, width = size
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    if image.shape[2] == 3:
        return np.asarray(cv2.resize(image, (width, height), interpolation=how), image.dtype)
    # OpenCV averages areas of four channels at most, and drops the axis of a single one.
    parts = [np.ascontiguousarray(image[..., first : first + 4]) for first in range(0, image.shape[2], 4)]
    resized = [cv2.resize(part, (width, height), interpolation=how).reshape(height, width, -1) for part in parts]
    return np.asarray(np.concatenate(resized, axis=2), image.dtype)


def pad(array: NDArray[Any], size: tuple[int, int], value: int | tuple[float, ...]) -> NDArray[Any]:
    """(h, w, ...) -> (H, W, ...), filled at the right and bottom."""
    bottom, right = size[0] - array.shape[0], size[1] - array.shape[1]
    if bottom == 0 and right == 0:
        return array
    padded = np.empty((*size, *array.shape[2:]), array.dtype)
    padded[...] = value
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


class Photometric:
    """Brightness (+-32), contrast and saturation (x 0.5..1.5), hue (+-18 of OpenCV's 180), each half of the time: the
    distortion that segmentation recipes have used since SSD.
    """

    def __init__(self) -> None:
        # Imported here: albumentations takes seconds to load, which evaluation needn't pay. It asks the network for its
        # newest version unless it is told not to.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A

        self._compose = A.Compose(
            [
                A.RandomBrightnessContrast(brightness_limit=32 / 255, contrast_limit=0.0, p=0.5),
                A.RandomBrightnessContrast(brightness_limit=0.0, contrast_limit=0.5, p=0.5),
                A.ColorJitter(brightness=(1, 1), contrast=(1, 1), saturation=(0.5, 1.5), hue=(0, 0), p=0.5),
                A.HueSaturationValue(hue_shift_limit=18, sat_shift_limit=0, val_shift_limit=0, p=0.5),
            ]
        )

    def __call__(self, image: Pixels, seed: int) -> Pixels:
        """image: (H, W, 3) -> (H, W, 3)."""
        # Two traps of albumentations 2.0.8: unseeded, workers repeat their draws in every epoch; and `set_random_seed`
        # gives every transform the same stream, so that all of them act or none, and brightness follows contrast.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return np.asarray(self._compose(image=image)["image"], np.uint8)

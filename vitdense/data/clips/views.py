"""From the frames of a clip to one size: crops and changes that are the same for all of its frames."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from vitdense.data.captions.views import crop_box
from vitdense.data.clips.decoding import Picture
from vitdense.data.clips.sampling import SamplingConfig
from vitdense.registry import Config

Chance = float


class ClipAugment(Config):
    """A crop of `scale` of the area and of an aspect in `ratio`, stretched to the size; scale null takes a square of
    the clip after its short side came to one drawn from `short_sides`, as TimeSformer and SlowFast do.

    `flip_prob` is the chance of a mirrored clip: 0 where left and right have a meaning. `rand_augment` is RandAugment
    (https://arxiv.org/abs/1909.13719) as (operations, magnitude of 30), `erase_prob` the chance of a rectangle without
    content (https://arxiv.org/abs/1708.04896). All are drawn once for a clip, and the same for its frames, but that
    RandAugment's equalising follows each frame's own histogram.
    """

    scale: tuple[PositiveFloat, PositiveFloat] | None = (0.5, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    short_sides: tuple[PositiveInt, PositiveInt] | None = None
    flip_prob: Chance = Field(default=0.5, ge=0.0, le=1.0)
    rand_augment: tuple[NonNegativeInt, NonNegativeInt] | None = None
    color_jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] | None = None
    erase_prob: Chance = Field(default=0.0, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _in_order(self) -> "ClipAugment":
        if self.scale is not None and not self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale}: shares of the area, the smaller first, at most 1")
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio {self.ratio}: the smaller first")
        if (self.scale is None) == (self.short_sides is None):
            raise ValueError("scale and short_sides are two ways to crop: give one, and null for the other")
        if self.short_sides is not None and self.short_sides[0] > self.short_sides[1]:
            raise ValueError(f"short_sides {self.short_sides}: the smaller first")
        if self.rand_augment is not None and self.rand_augment[1] > 30:
            raise ValueError(f"rand_augment {self.rand_augment}: a magnitude of 30 at most")
        return self


class ClipViewConfig(SamplingConfig):
    """`size` is a side or (H, W) of what the model is given. Validation clips are resized so that their short side is
    `short_side` (by default just so that the size fits in), and `crops` of that size are cut out along the long side:
    the middle, or 3 from end to end. A video gives views x crops clips, whose class probabilities are averaged.
    """

    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224
    short_side: PositiveInt | None = None
    crops: PositiveInt = 1
    augment: ClipAugment = ClipAugment()
    seed: NonNegativeInt = 0

    @property
    def extent(self) -> tuple[int, int]:
        """(H, W)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


Boxes = tuple[int, int, int, int]
"""Top, left, height, width."""


def training_clip(frames: Iterable[Picture], config: ClipViewConfig, generator: np.random.Generator) -> Tensor:
    """T frames (H, W, 3) of one size -> (3, T, *size) uint8."""
    cut: Callable[[Tensor], Tensor] | None = None
    resized = []
    for frame in frames:
        planes = _planes(frame)
        if cut is None:
            cut = _training_cut((planes.shape[1], planes.shape[2]), config, generator)
        resized.append(cut(planes))
    return _recoloured(_stacked(resized), config.augment, generator).transpose(0, 1).contiguous()


def validation_clips(frames: Iterable[Picture], config: ClipViewConfig) -> list[Tensor]:
    """T frames (H, W, 3) of one size -> `crops` times (3, T, *size) uint8."""
    height, width = config.extent
    large = _stacked([_shortened(_planes(frame), config) for frame in frames])
    rest_down, rest_across = large.shape[-2] - height, large.shape[-1] - width
    shares = [0.5] if config.crops == 1 else np.linspace(0, 1, config.crops).tolist()
    clips = []
    for share in shares:
        # Along the longer side; in the middle of the other.
        down, across = (share, 0.5) if rest_down > rest_across else (0.5, share)
        top, left = int(rest_down * down), int(rest_across * across)
        clips.append(large[..., top : top + height, left : left + width].transpose(0, 1).contiguous())
    return clips


def _training_cut(
    size: tuple[int, int], config: ClipViewConfig, generator: np.random.Generator
) -> Callable[[Tensor], Tensor]:
    """What is cut out of each frame of (H, W), and the size that it is brought to."""
    augment, (height, width) = config.augment, config.extent
    if augment.scale is not None:
        left, top, right, bottom = crop_box(generator, (size[1], size[0]), augment.scale, augment.ratio)
    else:
        assert augment.short_sides is not None
        short = int(generator.integers(augment.short_sides[0], augment.short_sides[1] + 1))
        factor = max(short / min(size), height / size[0], width / size[1])
        tall, wide = (min(round(side / factor), whole) for side, whole in zip((height, width), size, strict=True))
        top, left = int(generator.integers(size[0] - tall + 1)), int(generator.integers(size[1] - wide + 1))
        bottom, right = top + tall, left + wide
    flips = generator.random() < augment.flip_prob

    def cut(planes: Tensor) -> Tensor:
        part = _resize(planes[:, top:bottom, left:right], (height, width))
        return part.flip(-1) if flips else part

    return cut


def _recoloured(clip: Tensor, augment: ClipAugment, generator: np.random.Generator) -> Tensor:
    """clip: (T, 3, H, W) uint8 -> the same shape."""
    from torchvision.transforms import v2

    chosen: list[Callable[[Tensor], Tensor]] = []
    if augment.rand_augment is not None:
        operations, magnitude = augment.rand_augment
        chosen.append(v2.RandAugment(operations, magnitude))
    if augment.color_jitter is not None:
        chosen.append(v2.ColorJitter(*augment.color_jitter))
    if augment.erase_prob > 0:
        chosen.append(v2.RandomErasing(augment.erase_prob))
    seed = int(generator.integers(2**63))
    # torchvision draws from the global stream, which belongs to the model.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for change in chosen:
            clip = change(clip)
    return clip


def _shortened(planes: Tensor, config: ClipViewConfig) -> Tensor:
    """planes: (3, h, w) with its short side at `short_side`, or as large as it must be for `size`."""
    size, wanted = planes.shape[-2:], config.extent
    least = max(side / given for side, given in zip(wanted, size, strict=True))
    factor = max((config.short_side or 0) / min(size), least)
    # The side that decides has its number exactly; rounding the other must not fall below the crop.
    tall, wide = (max(round(given * factor), side) for given, side in zip(size, wanted, strict=True))
    return _resize(planes, (tall, wide))


def _resize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    # Imported here: only those who read videos need it.
    from torchvision.transforms.v2 import functional

    resized: Tensor = functional.resize(planes, list(size), antialias=True)
    return resized


def _stacked(planes: list[Tensor]) -> Tensor:
    """T times (3, H, W) -> (T, 3, H, W), with colours side by side in memory, as decoders and resizing leave them."""
    return torch.stack([each.movedim(0, -1) for each in planes]).movedim(-1, 1)


def _planes(frame: Picture) -> Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)  # (3, H, W)

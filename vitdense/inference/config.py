"""How pictures are read off: whole or in windows, at which sizes."""

from typing import Literal, Protocol

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import Batch, Head, Outputs
from vitdense.registry import Config

Extent = PositiveInt | tuple[PositiveInt, PositiveInt]


class InferenceConfig(Config):
    """How pictures are read off: one square number or (height, width) for `window` and `stride`.

    `short_side` and `long_max` resize with the shape kept, as mmsegmentation's (2048, 512): to that short side, or
    less where the long side would pass `long_max`; `size` stretches to exactly that instead, as RT-DETR does. `stride`
    is two thirds of the window where it is left out. `merge_overlap` is how far things of one class that were found in
    several views may overlap and still both stay.

    Of volumes and clips `window_depth` and `stride_depth` are the slices or frames of a window, all of them where they
    are left out. Of a video, clips of `frames` frames are predicted, every `frame_stride`-th of the file.
    """

    mode: Literal["whole", "sliding"] = "whole"
    short_side: PositiveInt | None = None
    long_max: PositiveInt | None = None
    size: Extent | None = None
    window: Extent = 512
    stride: Extent | None = None
    blend: Literal["gaussian", "cosine", "uniform"] = "gaussian"
    window_batch: PositiveInt = 4
    scales: tuple[PositiveFloat, ...] = Field(default=(1.0,), min_length=1)
    flip: bool = False
    merge_overlap: float = Field(default=0.6, gt=0.0, le=1.0)
    window_depth: PositiveInt | None = None
    stride_depth: PositiveInt | None = None
    frames: PositiveInt | None = None
    frame_stride: PositiveInt = 1

    @model_validator(mode="after")
    def _windows_touch(self) -> "InferenceConfig":
        window, stride = self.window_and_stride()
        if stride[0] > window[0] or stride[1] > window[1]:
            raise ValueError(f"stride {stride} leaves gaps between windows of {window}; it can be {window} at most")
        deep, along = self.window_depth, self.stride_depth
        if along is not None and (deep is None or along > deep):
            raise ValueError(f"stride_depth {along} needs a window_depth of that or more, given {deep}")
        return self

    def window_and_stride(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Window and stride, each as (height, width)."""
        tall, wide = as_pair(self.window)
        default = (max(tall * 2 // 3, 1), max(wide * 2 // 3, 1))
        return (tall, wide), default if self.stride is None else as_pair(self.stride)


class PredictingModel(Protocol):
    """What `infer` needs of a model: `Model` has it, and so has any module with a head."""

    @property
    def head(self) -> Head:
        """The head whose `predict` turns outputs into predictions."""

    def __call__(self, batch: Batch, /) -> Outputs:
        """batch["images"]: (B, C, H, W), uint8 or floats in [0, 1] -> outputs."""


class ModelOfTasks(PredictingModel, Protocol):
    """What `infer` needs of a model whose head consists of several."""

    def alone(self, task: str) -> PredictingModel:
        """The same model with one of its heads."""


def fit(size: tuple[int, int], config: InferenceConfig, scale: float = 1.0) -> tuple[int, int]:
    """The (height, width) that a picture of `size` is resized to; `scale` is on top."""
    if config.size is not None:
        height, width = as_pair(config.size)
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
    factor = 1.0 if config.short_side is None else config.short_side / min(size)
    if config.long_max is not None:
        factor = min(factor, config.long_max / max(size))
    height, width = (max(int(side * factor * scale + 0.5), 1) for side in size)
    return height, width


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side: every `stride`, the last one shifted back to end at the border."""
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, size - window), 0) for index in range(count)]


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images of this size as they are; others as floats in [0, 1]. Of clips each frame."""
    if images.shape[-2:] == size:
        return images
    floats = images if images.is_floating_point() else images.float() / 255
    if floats.ndim == 5:
        frames = resize_images(floats.transpose(1, 2).flatten(0, 1), size)
        return frames.reshape(len(images), -1, *frames.shape[1:]).transpose(1, 2)  # (B, C, T, H, W)
    return F.interpolate(floats, size=size, mode="bilinear", antialias=True)


def as_pair(extent: int | tuple[int, int]) -> tuple[int, int]:
    """One number for both sides, or two."""
    return (extent, extent) if isinstance(extent, int) else extent

"""Frames of clips and slices of volumes as pictures: the time axis folded into the batch, and back."""

from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import Batch, Level
from vitdense.errors import UserError


def fold(maps: Tensor) -> Tensor:
    """maps: (B, C, T, H, W) -> (B * T, C, H, W), clip by clip."""
    return maps.transpose(1, 2).flatten(0, 1)


def unfold(maps: Tensor, count: int) -> Tensor:
    """maps: (B * T, C, H, W) of B = count clips -> (B, C, T, H, W)."""
    return maps.reshape(count, -1, *maps.shape[1:]).transpose(1, 2)


def resize_3d(maps: Tensor, size: tuple[int, int, int]) -> Tensor:
    """maps: (B, C, t, h, w) -> (B, C, T, H, W), trilinear; untouched where the size is right already."""
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="trilinear", align_corners=False)


def of_frames(maps: Tensor, frames: int) -> Tensor:
    """maps: (B, C, t, h, w) -> (B * T, C, h, w), linear along time.

    Bilinear resizing of these is trilinear resizing of the given: what is full size is so for losses and argmax only.
    """
    return fold(resize_3d(maps, (frames, maps.shape[-2], maps.shape[-1])))


def without_time(levels: tuple[Level, ...], name: str) -> tuple[Level, ...]:
    """The levels of single frames; UserError where they have no time axis."""
    if any(level.time_stride is None for level in levels):
        raise UserError(f"head {name} needs maps with a time axis, of a backbone for clips or volumes")
    return tuple(replace(level, time_stride=None) for level in levels)


def fold_batch(batch: Batch) -> Batch:
    """Images (B, C, T, H, W), masks and depth (B, T, H, W) -> those of B * T pictures; sizes are each clip's T times.

    UserError where masks or depth are not of the images' frames.
    """
    images = batch["images"]
    if images.ndim != 5:
        raise UserError(f"a head of clips needs images (B, C, T, H, W), got {tuple(images.shape)}")
    frames = images.shape[2]
    folded = Batch(images=fold(images))
    if "sizes" in batch:
        folded["sizes"] = [size for size in batch["sizes"] for _ in range(frames)]
    if "lean" in batch:
        folded["lean"] = batch["lean"]
    if "masks" in batch:
        folded["masks"] = _folded_truth(batch["masks"], images, "masks")
    if "depth" in batch:
        folded["depth"] = _folded_truth(batch["depth"], images, "depth")
    return folded


def _folded_truth(truth: Tensor, images: Tensor, name: str) -> Tensor:
    expected = (images.shape[0], *images.shape[2:])
    if tuple(truth.shape) != expected:
        raise UserError(f"{name} of clips must be (B, T, H, W) = {expected} as the clips are, got {tuple(truth.shape)}")
    return truth.flatten(0, 1)  # (B * T, H, W)

"""Pictures with boxes in files: the options and the reading that `coco`, `voc_boxes` and `yolo` share."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from vitdense.contracts import DataConfig, Sample, Samples, Split, Target
from vitdense.data.boxes.audit import BoxAudit, audit_boxes, size_fault
from vitdense.data.boxes.augment import (
    BoxAugment,
    DetrAugment,
    JitterAugment,
    MosaicAugment,
    NoAugment,
    StretchAugment,
    Tile,
)
from vitdense.data.boxes.records import Record, Records
from vitdense.data.boxes.segments import Segment
from vitdense.data.boxes.views import Size, View, seen
from vitdense.data.colours import Distortion
from vitdense.data.images import read_image, read_shrunken
from vitdense.data.segmentation import colours
from vitdense.data.transforms import PAD_COLOUR, Pixels
from vitdense.errors import DataError

Augments = DetrAugment | JitterAugment | StretchAugment | MosaicAugment | NoAugment


class BoxDataConfig(DataConfig):
    """`augment` says how training pictures are cut and resized; validation pictures keep their size.

    Training batches are padded to their largest picture, or on to a `bucket`: to multiples of a number, or to the
    smallest that fits of some (height, width), so that few shapes occur. `fast_decode` divides JPEGs by 2, 4 or 8 while
    they are decoded, where the augmentation shrinks them by more than that anyway. `first` takes only so many pictures
    of each split, such as 16 to see whether a recipe can learn them by heart.
    """

    augment: Annotated[Augments, Field(discriminator="kind")] = DetrAugment()
    bucket: PositiveInt | tuple[tuple[PositiveInt, PositiveInt], ...] | None = None
    fast_decode: bool = False
    first: PositiveInt | None = None
    seed: NonNegativeInt = 0

    def canvas(self, largest: Size) -> Size | None:
        """(H, W) of a training batch whose largest height and width are given; None: those."""
        fixed = self.augment.canvas
        if fixed is not None:
            largest = (max(fixed[0], largest[0]), max(fixed[1], largest[1]))
        if self.bucket is None:
            return None if fixed is None else largest
        if isinstance(self.bucket, int):
            return -(-largest[0] // self.bucket) * self.bucket, -(-largest[1] // self.bucket) * self.bucket
        fitting = [size for size in self.bucket if size[0] >= largest[0] and size[1] >= largest[1]]
        if not fitting:
            told = ", ".join(f"{height}x{width}" for height, width in self.bucket)
            raise DataError(f"data.bucket = {told}: none holds pictures of {largest[0]}x{largest[1]} (height x width)")
        return min(fitting, key=lambda size: size[0] * size[1])

    def samples(self, records: Records, split: Split, *, masks: bool = False) -> "BoxSamples":
        """The samples of what was read; raises DataError where there is no picture at all."""
        if not records.records:
            reasons = "; ".join(fault.text for fault in records.faults[:3])
            raise DataError(f"{split}: no picture can be used: {reasons or 'there is none'}")
        records = replace(records, records=records.records[: self.first])
        augment = self.augment if split == "train" else None
        return BoxSamples(records, augment, seed=self.seed, masks=masks, fast_decode=self.fast_decode)


class BoxSamples(Samples):
    """One split. Training samples are augmented views with the boxes (M, 4) fp32 of what can be seen and learnt from;
    validation samples are whole pictures with all of the file's boxes, areas and crowds.
    """

    def __init__(
        self, records: Records, augment: BoxAugment | None, *, seed: int, masks: bool, fast_decode: bool
    ) -> None:
        self.records, self.faults = records.records, records.faults
        self.classes, self.category_ids = records.classes, records.category_ids
        self.image_ids = records.image_ids
        self.palette = colours(len(records.classes))
        self.seed, self.masks, self.fast_decode = seed, masks, fast_decode
        self._augment = augment
        self._colours = Distortion() if augment is not None and augment.photometric else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        if self._augment is None:
            return self._whole(self.records[index])
        return self._augmented(self._augment, epoch, index)

    def segments_of(self, record: Record) -> Sequence[Segment]:
        """The outlines of a picture's things, one for each box; DataError where they can't be read."""
        return record.segments

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """What reading the files found, header sizes of all pictures, and at most `limit` pictures read in full."""
        return audit_boxes(self, limit=limit, report=report).faults

    def survey(self, report: Callable[[str], None] | None = None) -> BoxAudit:
        """The same with counts, of all pictures."""
        return audit_boxes(self, limit=None, report=report)

    def _whole(self, record: Record) -> Sample:
        pixels = read_image(record.image)
        _check_size(record, (pixels.shape[0], pixels.shape[1]))
        target = Target(
            boxes=torch.from_numpy(record.boxes.copy()),
            labels=torch.from_numpy(record.labels.copy()),
            crowd=torch.from_numpy(record.crowd.copy()),
            areas=torch.from_numpy(record.areas.copy()),
        )
        if self.masks:
            target["masks"] = _stack([segment.mask(record.size) for segment in self.segments_of(record)], record.size)
        return Sample(id=record.id, image=_planes(pixels), target=target)

    def _augmented(self, augment: BoxAugment, epoch: int, index: int) -> Sample:
        generator = np.random.default_rng([self.seed, epoch, index])
        layout = augment.layout(generator, index, self.records)
        pictures, boxes, labels, masks = [], [], [], []
        for tile in layout.tiles:
            picture, view = self._read(tile, generator)
            record = self.records[tile.index]
            found, kept = seen(
                record.inside(),
                view,
                visibility=augment.min_visibility,
                by_centre=augment.by_centre,
                side=augment.min_side,
            )
            learnt = ~record.crowd[kept]
            found, kept = found[learnt], kept[learnt]
            if self.masks:
                segments = self.segments_of(record)
                drawn = [_on_canvas(segments[each].view(view), view, layout.canvas) for each in kept]
                filled = np.array([bool(mask.any()) for mask in drawn], np.bool_)
                found, kept = found[filled], kept[filled]
                masks += [mask for mask in drawn if mask.any()]
            pictures.append((picture, view))
            boxes.append(found)
            labels.append(record.labels[kept])
        target = Target(
            boxes=torch.from_numpy(np.concatenate(boxes).astype(np.float32)),
            labels=torch.from_numpy(np.concatenate(labels)),
        )
        if self.masks:
            target["masks"] = _stack(masks, layout.canvas)
        return Sample(id=self.records[index].id, image=_planes(_joined(pictures, layout.canvas)), target=target)

    def _read(self, tile: Tile, generator: np.random.Generator) -> tuple[Pixels, View]:
        """A tile's pixels at its size, recoloured, and the view that they really are."""
        record, view = self.records[tile.index], tile.view
        pixels, size, shrink = read_shrunken(record.image, view.shrink() if self.fast_decode else 1)
        _check_size(record, size)
        view = view.snapped(shrink)
        seed = int(generator.integers(2**31))
        if self._colours is None:
            return view.cut(pixels, shrink), view
        top, left, bottom, right = (side // shrink for side in view.window)
        if (bottom - top) * (right - left) >= view.size[0] * view.size[1]:
            return self._colours(view.cut(pixels, shrink), seed), view
        recoloured = self._colours(np.ascontiguousarray(pixels[top:bottom, left:right]), seed)  # before it grows
        return View((0, 0, bottom - top, right - left), view.size, flip=view.flip).cut(recoloured), view


def _check_size(record: Record, size: Size) -> None:
    if size != record.size:
        raise DataError(size_fault(record, size))


def _joined(pictures: list[tuple[Pixels, View]], canvas: Size) -> Pixels:
    """Each picture at its place; one that covers all is the canvas."""
    first, view = pictures[0]
    if len(pictures) == 1 and view.size == canvas:
        return first
    joined = np.empty((*canvas, 3), np.uint8)
    joined[...] = PAD_COLOUR
    for picture, view in pictures:
        view.put(joined, picture)
    return joined


def _on_canvas(mask: NDArray[np.uint8], view: View, canvas: Size) -> NDArray[np.uint8]:
    if view.size == canvas:
        return mask
    placed = np.zeros(canvas, np.uint8)
    view.put(placed, mask)
    return placed


def _stack(masks: list[NDArray[np.uint8]], size: Size) -> Tensor:
    """N masks (H, W) -> (N, H, W) bool."""
    return torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), np.uint8)).bool()


def _planes(pixels: Pixels) -> Tensor:
    """(H, W, 3) -> (3, H, W); OpenCV does this faster than NumPy."""
    planes = np.empty((3, *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, list(planes))
    return torch.from_numpy(planes)

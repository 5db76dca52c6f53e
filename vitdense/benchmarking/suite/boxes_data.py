"""Rows of detection's data pipeline: JPEGs with boxes to a batch of augmented pictures, beside albumentations."""

import atexit
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.contracts import Batch, Sample, Target
from vitdense.data.boxes.augment import BoxAugment, JitterAugment, StretchAugment
from vitdense.data.boxes.records import Record, Records, Things
from vitdense.data.boxes.samples import BoxDataConfig, BoxSamples
from vitdense.data.boxes.views import Size, View, seen
from vitdense.data.images import read_image
from vitdense.data.loader import collate

SMALL: Size = (480, 640)
LARGE: Size = (1440, 1920)
JITTER = JitterAugment(size=1024)
STRETCH = StretchAugment(size=640, zoom_chance=0.0, keep="visible")
Compose = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """What our side of a row does: JPEGs of `size`, an augmentation, and whether the decoder may divide."""

    augment: BoxAugment
    size: Size = SMALL
    fast_decode: bool = False

    def pictures(self, conditions: Conditions) -> tuple[Record, ...]:
        """Those of a batch."""
        return _pictures(2 if conditions.tiny else conditions.batch or 16, self.size)


@cache
def _pictures(count: int, size: Size) -> tuple[Record, ...]:
    """JPEGs of soft blobs and noise, which compress about as photographs do, each with seven boxes."""
    folder = Path(tempfile.mkdtemp(prefix="vitdense-benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    generator, records = np.random.default_rng(SEED), []
    height, width = size
    for index in range(count):
        coarse = generator.integers(0, 256, (30, 40, 3)).astype(np.uint8)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        pixels = np.clip(smooth + generator.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
        path = folder / f"{index}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        things = Things()
        for _ in range(7):
            x, y = generator.uniform(0, width - 80), generator.uniform(0, height - 80)
            box = (x, y, min(x + generator.uniform(16, 300), width), min(y + generator.uniform(16, 300), height))
            things.add(box, int(generator.integers(80)), crowd=False, area=None, segment=None)
        records.append(things.record(path.name, path, size, path.name))
    return tuple(records)


class OurBatches(Job):
    """Batches of our samples, one after the other as in epochs."""

    def __init__(self, work: Work, conditions: Conditions) -> None:
        names = tuple(str(index) for index in range(80))
        records = Records(names, work.pictures(conditions))
        self.canvas = BoxDataConfig(augment=work.augment).canvas  # type: ignore[arg-type]  # a member of the union
        self.samples = BoxSamples(records, work.augment, seed=SEED, masks=False, fast_decode=work.fast_decode)
        self.epoch = 0

    def step(self) -> None:
        """One batch of all pictures."""
        self._batch()

    def outcome(self) -> Outcome:
        """A batch's pictures: not to be compared, as draws differ between the libraries; `Views` is."""
        return {"map": self._batch()["images"]}

    def _batch(self) -> Batch:
        self.epoch += 1
        return collate([self.samples[self.epoch, index] for index in range(len(self.samples))], self.canvas)


class TheirBatches(Job):
    """The same pictures through the same decoder and a composition of albumentations."""

    def __init__(self, make: Callable[[], Compose], work: Work, conditions: Conditions) -> None:
        self.records = work.pictures(conditions)
        self.compose = make()

    def step(self) -> None:
        """One batch of all pictures."""
        self._batch()

    def outcome(self) -> Outcome:
        """As ours."""
        return {"map": self._batch()["images"]}

    def _batch(self) -> Batch:
        return collate([self._sample(record) for record in self.records])

    def _sample(self, record: Record) -> Sample:
        found = self.compose(image=read_image(record.image), bboxes=record.boxes, labels=record.labels)
        target = Target(boxes=torch.from_numpy(found["bboxes"]).float(), labels=torch.tensor(found["labels"]))
        image = torch.from_numpy(np.ascontiguousarray(found["image"].transpose(2, 0, 1)))
        return Sample(id=record.id, image=image, target=target)


class Views(Job):
    """Fixed windows of the pictures, resized and mirrored with their boxes: what both must do alike, pixel by pixel."""

    def __init__(self, ours: bool, conditions: Conditions) -> None:
        self.records, self.ours = _pictures(2, SMALL), ours
        self.views = (View((31, 50, 410, 620), (640, 480), flip=True), View((0, 7, 480, 600), (301, 250)))

    def step(self) -> None:
        """All of them."""
        self.outcome()

    def outcome(self) -> Outcome:
        """Pictures and boxes."""
        found: dict[str, Tensor] = {}
        look = self._our if self.ours else self._their
        for index, (record, view) in enumerate(zip(self.records, self.views, strict=True)):
            image, boxes = look(record, view)
            found |= {f"picture {index}": torch.from_numpy(image), f"boxes {index}": torch.from_numpy(boxes)}
        return found

    def _our(self, record: Record, view: View) -> tuple[Any, Any]:
        boxes, _ = seen(record.inside(), view, visibility=0.1, by_centre=False, side=1.0)
        return view.cut(read_image(record.image)), boxes

    def _their(self, record: Record, view: View) -> tuple[Any, Any]:
        import albumentations as A

        top, left, bottom, right = view.window
        shrinks = view.size[0] <= bottom - top and view.size[1] <= right - left
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        steps = [A.Crop(left, top, right, bottom, p=1), A.Resize(*view.size, interpolation=how, p=1)]
        found = _compose([*steps, *([A.HorizontalFlip(p=1)] if view.flip else [])])(
            image=read_image(record.image), bboxes=record.boxes, labels=record.labels
        )
        return np.ascontiguousarray(found["image"]), found["bboxes"].astype(np.float64)


def _compose(steps: list[Any]) -> Compose:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A

    rule = A.BboxParams(
        "pascal_voc", label_fields=["labels"], min_visibility=0.1, clip=True, filter_invalid_bboxes=True
    )
    made = A.Compose(steps, bbox_params=rule)
    made.set_random_state(np.random.default_rng(SEED), random.Random(SEED))
    return made  # type: ignore[no-any-return]


def _their_jitter() -> Compose:
    import albumentations as A

    # 640 x 480 fits into 1024 at 1.6, times 0.1 to 2.
    scale = A.RandomScale(scale_limit=(0.1 * 1.6 - 1, 2.0 * 1.6 - 1), interpolation=cv2.INTER_LINEAR, p=1)
    crop = A.RandomCrop(1024, 1024, pad_if_needed=True, pad_position="top_left", p=1)
    return _compose([scale, crop, A.HorizontalFlip(p=0.5)])


def _their_stretch(crop: float = 0.8) -> Compose:
    import albumentations as A

    return _compose(
        [
            A.BBoxSafeRandomCrop(p=crop),
            A.Resize(640, 640, interpolation=cv2.INTER_LINEAR),
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(brightness_limit=32 / 255, contrast_limit=0.0, p=0.5),
            A.RandomBrightnessContrast(brightness_limit=0.0, contrast_limit=0.5, p=0.5),
            A.ColorJitter(brightness=(1, 1), contrast=(1, 1), saturation=(0.5, 1.5), hue=(0, 0), p=0.5),
            A.HueSaturationValue(hue_shift_limit=18, sat_shift_limit=0, val_shift_limit=0, p=0.5),
        ]
    )


def _row(name: str, summary: str, work: Work, theirs: Callable[[], Compose], note: str) -> Row:
    peer = Peer(
        "albumentations",
        "albumentations",
        lambda conditions: TheirBatches(theirs, work, conditions),
        lambda conditions: Pair(Views(True, conditions), Views(False, conditions)),
    )
    notes = (
        "Both read the same JPEGs with Pillow and end in one batch. What is compared are fixed windows, resized and"
        " mirrored, pixels and boxes: the libraries' random draws differ.",
        note,
    )
    return Row(name, summary, lambda conditions: OurBatches(work, conditions), (peer,), {"cpu": Goal(0.4, 1.0)}, notes)


ROWS = (
    _row(
        "detection_data",
        "16 JPEGs of 640 x 480 with 7 boxes: crop, stretch to 640 x 640, mirror, photometric distortion",
        Work(STRETCH),
        _their_stretch,
        "Ours distorts colours by one matrix, theirs in four steps through HSV.",
    ),
    _row(
        "detection_data_large",
        "16 JPEGs of 1920 x 1440 with 7 boxes: as detection_data, not cropped, with data.fast_decode",
        Work(STRETCH.model_copy(update={"crop_chance": 0.0}), LARGE, fast_decode=True),
        partial(_their_stretch, crop=0.0),
        "Ours divides JPEGs by 2 while they are decoded, as they shrink by more; a composition is given pixels.",
    ),
    _row(
        "detection_data_jitter",
        "16 JPEGs of 640 x 480 with 7 boxes: large-scale jitter, 0.1 to 2 x 1024, padded to 1024 x 1024",
        Work(JITTER),
        _their_jitter,
        "Ours averages areas where it shrinks; theirs is linear throughout.",
    ),
)

"""Pictures with masks in files: the options, the pairing of files and the reading that `folder` and `ade20k` share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from vitdense.contracts import IGNORE, DataConfig, Sample, Samples, Split
from vitdense.data.audit import audit_pairs
from vitdense.data.images import SUFFIXES, read_image, read_mask
from vitdense.data.pairs import Pair, find_pairs, missing_files, size_fault
from vitdense.data.transforms import Augment, Geometry, Photometric
from vitdense.errors import DataError

_UNKNOWN = IGNORE - 1

Colour = tuple[int, int, int]


class SegmentationDataConfig(DataConfig):
    """Training crops: scaled to `resize_short` (no longer than `resize_long_max`) x a factor in `scale`, cut to `crop`
    so that no class covers `category_ratio` of it. Validation pictures keep their size.
    """

    crop: PositiveInt | tuple[PositiveInt, PositiveInt] = 512
    resize_short: PositiveInt | None = None
    resize_long_max: PositiveInt | None = None
    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    category_ratio: float = Field(default=0.75, gt=0, le=1)
    flip: bool = True
    photometric: bool = True
    seed: NonNegativeInt = 0

    @field_validator("scale")
    @classmethod
    def _check_order(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError(f"the smallest factor comes first, got {list(scale)}")
        return scale

    def augment(self) -> Augment:
        """The training augmentation that these options describe."""
        geometry = Geometry(
            crop=(self.crop, self.crop) if isinstance(self.crop, int) else self.crop,
            short=self.resize_short,
            long_max=self.resize_long_max,
            scale=self.scale,
            category_ratio=self.category_ratio,
            flip=self.flip,
        )
        return Augment(geometry, Photometric() if self.photometric else None, seed=self.seed)


@dataclass(frozen=True)
class Labels:
    """How values in the files become classes: `first` is that of class 0, `ignored` values become IGNORE.

    `values` has the value of each class where they are not one after the other.
    """

    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignored: frozenset[int]
    first: int = 0
    values: tuple[int, ...] | None = None

    def table(self) -> NDArray[np.int16]:
        """Class for each value 0..65535; values that mean nothing get a number that `encode` recognises."""
        table = np.full(65536, _UNKNOWN, np.int16)
        table[list(self.values or range(self.first, self.first + len(self.classes)))] = np.arange(len(self.classes))
        table[[value for value in self.ignored if 0 <= value < 65536]] = IGNORE
        return table

    def describe(self) -> str:
        """The allowed values, for messages."""
        first, last = (self.first, self.first + len(self.classes) - 1)
        stored = f"{first}..{last}" if self.values is None else _runs(self.values)
        ignored = f", ignored: {_runs(sorted(self.ignored))}" if self.ignored else ""
        return f"allowed: {stored}{ignored}"


class PairedSamples(Samples):
    """One split of paired files. Training samples are augmented crops; validation samples keep the picture's size."""

    def __init__(self, pairs: Sequence[Pair], labels: Labels, augment: Augment | None, faults: Sequence[str]) -> None:
        self.pairs, self.labels, self.faults = tuple(pairs), labels, tuple(faults)
        self.classes, self.palette = labels.classes, labels.palette
        self.counted, self.what = labels.classes, "mask"
        self._augment, self._table = augment, labels.table()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        pair = self.pairs[index]
        image, mask = read_image(pair.image), self.read_labels(index)
        if image.shape[:2] != mask.shape:
            raise DataError(size_fault(pair, image.shape[:2], mask.shape))
        if self._augment is not None:
            image, mask = self._augment(image, mask, epoch=epoch, index=index)
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))  # (3, H, W)
        return Sample(id=pair.id, image=torch.from_numpy(pixels), mask=torch.from_numpy(mask))

    def read_labels(self, index: int) -> NDArray[np.int16]:
        """(H, W) classes, IGNORE where unlabelled; a value that means nothing raises DataError."""
        path = self.pairs[index].mask
        return self.as_classes(read_mask(path), path)

    def as_classes(self, values: NDArray[np.integer], path: Path) -> NDArray[np.int16]:
        """values: (h, w) of a mask's file -> classes, IGNORE where unlabelled."""
        if values.dtype.itemsize > 2 and (int(values.min()) < 0 or int(values.max()) > 65535):
            raise DataError(f"{path}: values {values.min()}..{values.max()}; {self.labels.describe()}")
        table = self._table
        mask = np.asarray(cv2.LUT(values, table[:256]) if values.dtype == np.uint8 else table[values], np.int16)
        if int(mask.min()) == _UNKNOWN:
            found = ", ".join(map(str, np.unique(values[mask == _UNKNOWN])[:8]))
            raise DataError(f"{path}: values without a class: {found}; {self.labels.describe()}")
        return mask

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """Pairing, header sizes of every pair, and at most `limit` pairs read in full."""
        # Imported here: audit.py needs this module, and so does every run that never audits.
        return audit_pairs(self, limit=limit, report=report).faults


def make_samples(
    images: Path,
    masks: Path,
    labels: Labels,
    config: SegmentationDataConfig,
    split: Split,
    *,
    image_suffix: str = "",
    mask_suffix: str = "",
    without: str = "",
) -> PairedSamples:
    """The samples of two folders (see `find_pairs`); raises DataError where there is no picture at all."""
    pairs, faults = find_pairs(images, masks, image_suffix=image_suffix, mask_suffix=mask_suffix, without=without)
    if not pairs:
        raise DataError(f"{images}: no pictures ({image_suffix or ', '.join(sorted(SUFFIXES))})")
    return PairedSamples(pairs, labels, config.augment() if split == "train" else None, faults)


def listed_samples(
    pairs: Sequence[Pair], labels: Labels, config: SegmentationDataConfig, split: Split
) -> PairedSamples:
    """The samples of a split list; files that it names and that are missing are faults."""
    return PairedSamples(pairs, labels, config.augment() if split == "train" else None, missing_files(pairs))


def _runs(values: Sequence[int]) -> str:
    """Sorted numbers as a reader wants them: 1, 2, 5..9."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def colours(count: int) -> tuple[Colour, ...]:
    """Well separated colours for classes without a palette: the bit pattern of PASCAL VOC, without its black."""

    def colour(index: int) -> Colour:
        bits = [[index >> (3 * place + channel) & 1 for place in range(3)] for channel in range(3)]
        red, green, blue = (sum(bit << (7 - place) for place, bit in enumerate(channel)) for channel in bits)
        return red, green, blue

    return tuple(colour(index + 1) for index in range(count))


def as_ignored(value: Any) -> frozenset[int]:
    """One value, a list of values or None -> a set."""
    if value is None:
        return frozenset()
    return frozenset(value) if isinstance(value, list | tuple) else frozenset([value])

"""`raster_folder`: rasters of any channels with masks, laid out as `folder`; crops are read without the rest."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from vitdense.contracts import DATA, IGNORE, Sample, Split
from vitdense.data.audit import Audit, Report, shorten
from vitdense.data.folder import FolderConfig
from vitdense.data.images import SUFFIXES, read_mask, read_size
from vitdense.data.pairs import Pair, find_pairs, size_fault
from vitdense.data.rasters.opening import open_raster
from vitdense.data.rasters.options import RasterConfig
from vitdense.data.rasters.raster import Area
from vitdense.data.rasters.values import Source
from vitdense.data.segmentation import Labels, PairedSamples
from vitdense.data.transforms import PAD_COLOUR, Augment
from vitdense.errors import DataError

Classes = NDArray[np.int16]


@DATA.register("raster_folder")
class RasterFolderConfig(FolderConfig):
    """Rasters (.npy, GeoTIFF) below images/, masks (.npy, .png) below annotations/, of `in_channels`; `raster` says
    what there is to say of scale, nodata, channels and layout. Missing pixels have no label; they and padding become
    `fill`, which should be the backbone's mean: left out, ImageNet's over and over. Colours are left alone.
    """

    in_channels: PositiveInt = 3
    raster: RasterConfig = Field(default_factory=RasterConfig)
    fill: tuple[float, ...] | None = None
    photometric: bool = False

    @model_validator(mode="after")
    def _fits_channels(self) -> "RasterFolderConfig":
        if self.photometric:
            raise ValueError("photometric is for RGB in 8 bits: rasters have values of other meanings")
        if self.fill is not None and len(self.fill) != self.in_channels:
            raise ValueError(f"fill has {len(self.fill)} numbers for {self.in_channels} channels")
        return self

    def filling(self) -> tuple[float, ...]:
        """A number for each channel."""
        if self.fill is not None:
            return self.fill
        colours = [value / 255 for value in PAD_COLOUR]
        return tuple(colours[index % 3] for index in range(self.in_channels))

    def build(self, split: Split) -> "RasterSamples":
        """The samples of a split; raises DataError where a folder or classes.json is missing."""
        images, masks, labels = self.found(split)
        pairs, faults = find_pairs(images, masks, suffixes=SUFFIXES | {".npy"})
        if not pairs:
            raise DataError(f"{images}: no rasters (.npy, .tif, .tiff)")
        return RasterSamples(pairs, labels, self, split, faults)


class RasterSamples(PairedSamples):
    """One split: images are floats (C, H, W), divided by their scale."""

    def __init__(
        self, pairs: list[Pair], labels: Labels, config: RasterFolderConfig, split: Split, faults: list[str]
    ) -> None:
        geometry = config.augment().geometry
        augment = Augment(geometry, None, seed=config.seed, padding=config.filling()) if split == "train" else None
        super().__init__(pairs, labels, augment, faults)
        self._config = config

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        pair = self.pairs[index]
        source, values = self._open(pair)
        picture, labels = _Pixels(source), _Labels(source, values, lambda part: self.as_classes(part, pair.mask))
        image: Any = picture
        mask: Any = labels
        if self._augment is not None:
            image, mask = self._augment(image, mask, epoch=epoch, index=index)
        else:
            image, mask = image[:, :], mask[:, :]
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))  # (C, H, W)
        return Sample(id=pair.id, image=torch.from_numpy(pixels), mask=torch.from_numpy(np.ascontiguousarray(mask)))

    def read_labels(self, index: int) -> Classes:
        """(H, W) classes of all pixels, IGNORE where unlabelled or missing."""
        pair = self.pairs[index]
        source, values = self._open(pair)
        return _Labels(source, values, lambda part: self.as_classes(part, pair.mask))[:, :]

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """Pairing, channels and sizes of every pair, and at most `limit` pairs' labels."""
        return self._audit(limit, report).faults

    def survey(self, report: Report | None = None) -> Audit:
        """All of it."""
        return self._audit(None, report)

    def _audit(self, limit: int | None, report: Report | None) -> Audit:
        audit = Audit(self.classes, len(self))
        faults = [("files without a partner", fault) for fault in self.faults]
        for index, pair in enumerate(self.pairs):
            if not (pair.image.exists() and pair.mask.exists()):
                continue
            try:
                source, _ = self._open(pair)
                audit.sizes[source.size] += 1
                if limit is None or audit.read < limit:
                    audit.count(self.read_labels(index))
            except DataError as fault:
                faults.append(("bad pairs", str(fault)))
            if report is not None:
                report(f"{index + 1} of {len(self)} rasters")
        audit.faults = shorten(faults)
        return audit

    def _open(self, pair: Pair) -> tuple[Source, NDArray[Any]]:
        """A raster and the values of its mask, those of .npy still on the disk; DataError where sizes differ."""
        config = self._config
        source = Source(open_raster(pair.image, config.in_channels, config.raster), config.raster, config.filling())
        size = _mask_size(pair.mask)
        if size != source.size:
            raise DataError(size_fault(pair, source.size, size))
        return source, _map_mask(pair.mask)


@dataclass(frozen=True)
class _Pixels:
    """What looks like an array (H, W, C) to `cut`, and reads what it is asked for."""

    source: Source

    def __getitem__(self, places: tuple[slice, slice]) -> NDArray[np.float32]:
        pixels, _ = self.source.read(_area(places, self.source.size))
        return np.asarray(pixels.permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class _Labels:
    """The same of a mask (H, W). Every second pixel, by which `cut` chooses a place, is looked at as if none were
    missing: it would cost reading the raster at all places that are tried."""

    source: Source
    values: NDArray[Any]
    encode: Callable[[NDArray[Any]], Classes]

    @property
    def shape(self) -> tuple[int, int]:
        return self.source.size

    def __getitem__(self, places: tuple[slice, slice]) -> Classes:
        classes = self.encode(np.array(self.values[places]))
        if any(place.step is not None for place in places):
            return classes
        _, missing = self.source.read(_area(places, self.source.size))
        return np.where(missing, np.int16(IGNORE), classes)


def _area(places: tuple[slice, slice], size: tuple[int, int]) -> Area:
    (top, bottom, _), (left, right, _) = (place.indices(side) for place, side in zip(places, size, strict=True))
    return Area(top, left, bottom - top, right - left)


def _mask_size(path: Path) -> tuple[int, ...]:
    return _map_mask(path).shape if path.suffix.lower() == ".npy" else read_size(path)


def _map_mask(path: Path) -> NDArray[Any]:
    if path.suffix.lower() != ".npy":
        return read_mask(path)
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as fault:
        raise DataError(f"{path}: no array that numpy can read ({fault})") from None
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise DataError(f"{path}: expected class indices (H, W), found {values.shape} in {values.dtype}")
    return np.asarray(values) if values.flags.owndata else values

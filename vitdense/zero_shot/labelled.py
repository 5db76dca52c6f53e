"""Pictures with the names of their classes, from folders of classes or a table, made ready for a network."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitdense.data.classes.class_folder import ClassFolderConfig
from vitdense.data.images import open_picture
from vitdense.errors import DataError
from vitdense.model import Model
from vitdense.preprocessing import Preprocess

SIDE = 224
"""Pixels a side for networks that don't say what they were made for."""


@dataclass(frozen=True)
class Labelled:
    """Files and what class each is of: `labels` are places in `names`; `faults` tells of rows that name no picture or
    no class."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    faults: tuple[str, ...] = ()


def read_labelled(path: Path) -> Labelled:
    """A folder with a folder of pictures for each class (or with such folders below val or test), or a table with the
    columns path and label, as data `class_folder` reads them; DataError where there are none."""
    if not path.exists():
        raise DataError(f"{path}: no such folder or table; expected FOLDER/CLASS/x.jpg, or a .csv with path and label")
    table = {"root": str(path.parent), "train": path.name, "val": path.name}
    samples = ClassFolderConfig.model_validate(table if path.is_file() else {"root": str(path)}).build("val")
    files = tuple(Path(picture.path) for picture, _ in samples.files)
    faults = tuple(fault.text for fault in samples.faults if fault.kind != "empty classes")
    return Labelled(files, tuple(label for _, label in samples.files), samples.classes, faults)


def preparation_of(model: Model) -> Preprocess:
    """What the model's publisher does to a picture; without one, as OpenAI, at the side that the backbone was made for:
    the short side to it (bicubic), and the middle cut out."""
    if model.preprocess is not None:
        return model.preprocess
    options = {} if model.backbone.config is None else model.backbone.config.model_dump()
    made_for = options.get("image_size")
    side = made_for if isinstance(made_for, int) else SIDE
    return Preprocess((side, side), "shortest")


@dataclass
class Prepared:
    """Batches of pictures (B, 3, H, W) uint8; after the last one, `read` are the places of those in them, and
    `skipped` tells why the others are not. A file that can't be read stops, or is passed over."""

    labelled: Labelled
    prepare: Preprocess
    batch_size: int
    skip_bad: bool = False
    read: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Tensor]:
        """Pictures of several sizes, as SigLIP 2's are, come in batches of one size."""
        if self.labelled.faults and not self.skip_bad:
            raise DataError(self.labelled.faults[0])
        self.read, self.skipped = [], list(self.labelled.faults)
        batch: list[Tensor] = []
        for place, file in enumerate(self.labelled.files):
            try:
                image = self._prepared(file)
            except DataError as fault:
                if not self.skip_bad:
                    raise
                self.skipped.append(str(fault))
                continue
            if batch and (len(batch) == self.batch_size or batch[0].shape != image.shape):
                yield torch.stack(batch)
                batch = []
            batch.append(image)
            self.read.append(place)
        if batch:
            yield torch.stack(batch)
        if not self.read:
            raise DataError(f"not one of {len(self.labelled.files)} pictures can be read; the first: {self.skipped[0]}")

    def labels(self) -> Tensor:
        """(N,) int64 of the pictures that were read."""
        return torch.tensor([self.labelled.labels[place] for place in self.read])

    def _prepared(self, file: Path) -> Tensor:
        """(3, H, W) uint8."""
        picture = open_picture(file)
        if min(self.prepare.resized((picture.height, picture.width))) < 1:
            raise DataError(f"{file}: {picture.width} x {picture.height} pixels are too narrow to fit")
        return torch.from_numpy(np.array(self.prepare(picture))).permute(2, 0, 1)

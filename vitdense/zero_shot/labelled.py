"""Pictures with the names of their classes, from folders of classes or a table, made ready for a network."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitdense.data.images import SUFFIXES, open_picture
from vitdense.errors import DataError, UserError
from vitdense.model import Model
from vitdense.registry import nearest
from vitdense.zero_shot.prompts import ClassName

Prepare = Callable[[Image.Image], Image.Image]
SIDE = 224
"""Pixels a side for networks that don't say what they were made for."""


@dataclass(frozen=True)
class Labelled:
    """Files and what class each is of: `labels` are places in `names`."""

    root: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]


def read_labelled(path: Path) -> Labelled:
    """A folder with a folder of pictures for each class, or a .csv with the columns path and label; DataError where
    there are none."""
    if path.suffix.lower() == ".csv":
        return _read_table(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; expected a folder for each class with pictures in it, or a .csv")
    folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not folders:
        raise DataError(f"{path} has no folders of classes; expected {path}/CLASS/x.jpg, or a .csv with path and label")
    files, labels = [], []
    for label, folder in enumerate(folders):
        own = sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES)
        files += own
        labels += [label] * len(own)
    if not files:
        raise DataError(f"{path}: its folders hold no pictures; looked for {', '.join(sorted(SUFFIXES))}")
    return Labelled(path, tuple(files), tuple(labels), tuple(folder.name for folder in folders))


def _read_table(path: Path) -> Labelled:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f"{path}: can't be read as a table ({fault})") from None
    if not rows or not {"path", "label"} <= rows[0].keys():
        raise DataError(f"{path}: expected a first line with the columns path and label, and a line for each picture")
    for number, row in enumerate(rows, 2):
        if not row["path"] or not row["label"]:
            raise DataError(f"{path}:{number}: path or label is empty")
    names = sorted({row["label"] for row in rows})
    files = tuple(path.parent / row["path"] for row in rows)
    return Labelled(path.parent, files, tuple(names.index(row["label"]) for row in rows), tuple(names))


@dataclass(frozen=True)
class Matched:
    """Class names for prompts, and for each class of the pictures its place among them; `note` says what was done."""

    classes: tuple[ClassName, ...]
    places: tuple[int, ...]
    note: str = ""


def match_classes(names: Sequence[str], given: Sequence[ClassName]) -> Matched:
    """The classes of pictures beside those of prompts: none given: the pictures' own; all found by name, whatever
    their case and with _ or - for a space: those; else, where there are as many: in their order, with a note.

    More may be given than the pictures have. UserError where they can't be brought together.
    """
    if not given:
        own = tuple(ClassName(name, (_spoken(name),)) for name in names)
        return Matched(own, tuple(range(len(own))))
    places = {_spoken(each.name).lower(): index for index, each in enumerate(given)}
    missing = [name for name in names if _spoken(name).lower() not in places]
    if not missing:
        return Matched(tuple(given), tuple(places[_spoken(name).lower()] for name in names))
    if len(given) == len(names) and len(missing) == len(names):
        note = f"class names are taken in the order of the pictures' classes: {names[0]} is {given[0].words[0]!r}, ..."
        named = [ClassName(name, each.words) for name, each in zip(names, given, strict=True)]
        return Matched(tuple(named), tuple(range(len(named))), note)
    hint = nearest(missing[0], [each.name for each in given])
    raise UserError(
        f"the pictures have {len(names)} classes, and {', '.join(map(repr, missing[:5]))} of them"
        f" {'is' if len(missing) == 1 else 'are'} not among the {len(given)} class names{hint}; name them as the"
        f" pictures do, {names[0]}=words where prompts say other words"
    )


def _spoken(name: str) -> str:
    """A folder's name as words: t_shirt is t shirt."""
    return " ".join(name.replace("_", " ").split())


def preparation_of(model: Model) -> Prepare:
    """What the model's publisher does to a picture; without one, as OpenAI, at the side that the backbone was made for:
    the short side to it (bicubic), and the middle cut out."""
    if model.preprocess is not None:
        return model.preprocess
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    options = {} if model.backbone.config is None else model.backbone.config.model_dump()
    made_for = options.get("image_size")
    side = made_for if isinstance(made_for, int) else SIDE
    resize, cut = Resize(side, InterpolationMode.BICUBIC), CenterCrop(side)
    return lambda picture: cut(resize(picture)).convert("RGB")


@dataclass
class Prepared:
    """Batches of pictures (B, 3, H, W) uint8; after the last one, `read` are the places of those in them, and
    `skipped` tells why the others are not. A file that can't be read stops, or is passed over."""

    labelled: Labelled
    prepare: Prepare
    batch_size: int
    skip_bad: bool = False
    read: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Tensor]:
        """Pictures of several sizes, as SigLIP 2's are, come in batches of one size."""
        batch: list[Tensor] = []
        for place, file in enumerate(self.labelled.files):
            try:
                pixels = np.array(self.prepare(open_picture(file)))
            except DataError as fault:
                if not self.skip_bad:
                    raise
                self.skipped.append(str(fault))
                continue
            image = torch.from_numpy(pixels).permute(2, 0, 1)  # (3, H, W)
            if batch and (len(batch) == self.batch_size or batch[0].shape != image.shape):
                yield torch.stack(batch)
                batch = []
            batch.append(image)
            self.read.append(place)
        if batch:
            yield torch.stack(batch)
        if not self.read:
            raise DataError(f"not one of {len(self.labelled.files)} pictures can be read; the first: {self.skipped[0]}")

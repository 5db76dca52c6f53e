"""Scores of panoptic segmentation in COCO's form: JSON, and PNGs whose colours are the ids of segments."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from vitdense.data.images import read_image
from vitdense.errors import DataError
from vitdense.metrics.panoptic import VOID, Ints, PanopticQuality, Segment
from vitdense.scoring.coco_files import Id, Records, check_records, read_json
from vitdense.scoring.pairs import Pairs, counted, listed


@dataclass(frozen=True)
class Scored:
    """Counts of all pictures, and what the classes are called."""

    quality: PanopticQuality
    names: tuple[str, ...]
    category_ids: tuple[Id, ...]
    images: int


@dataclass(frozen=True)
class _Side:
    """The truth or the predictions: the record of each picture, and where the maps are."""

    path: Path
    folder: Path
    records: dict[Id, dict[str, Any]]

    def file(self, number: Id) -> Path:
        return self.folder / str(self.records[number]["file_name"])

    def segments(self, number: Id, labels: dict[Id, int]) -> dict[int, Segment]:
        """Segments of a picture by their ids in its map."""
        stored = self.records[number]["segments_info"]
        check_records(f"{self.path}, image {number!r}", "segments", stored, ("id", "category_id"))
        for record in stored:
            if record["category_id"] not in labels:
                raise DataError(f"{self.path}: image {number!r} has the unknown category {record['category_id']!r}")
        return {
            record["id"]: Segment(labels[record["category_id"]], bool(record.get("iscrowd", 0))) for record in stored
        }


def score_panoptic(
    truth: Path, truth_folder: Path, predictions: Path, folder: Path, *, threads: int | None = None
) -> Scored:
    """Panoptic quality over every picture of the truth; faults of all files come as one DataError."""
    content = read_json(truth)
    if not isinstance(content, dict) or not isinstance(content.get("categories"), list):
        raise DataError(f"{truth} is no panoptic truth: it has no list of categories")
    categories: Records = content["categories"]
    check_records(truth, "categories", categories, ("id", "isthing"))
    labels = {record["id"]: index for index, record in enumerate(categories)}
    sides = (_read(truth, truth_folder, content), _read(predictions, folder, read_json(predictions)))
    missing = [number for number in sides[0].records if number not in sides[1].records]
    strange = [number for number in sides[1].records if number not in sides[0].records]
    for images, text in ((missing, "has no prediction for"), (strange, "has predictions without truth for")):
        if images:
            raise DataError(f"{predictions} {text} {len(images)} images: {listed(images)}")
    quality = PanopticQuality([bool(record["isthing"]) for record in categories])
    numbers = {(sides[0].file(number), sides[1].file(number)): number for number in sides[0].records}

    def count(true_file: Path, found_file: Path) -> Tensor | DataError:
        try:
            return torch.from_numpy(_measure(quality, sides, numbers[true_file, found_file], labels))
        except DataError as fault:
            return fault

    for share in counted(Pairs(tuple(numbers), ()), count, threads):
        quality.add(share.numpy())
    names = tuple(str(record.get("name", record["id"])) for record in categories)
    return Scored(quality, names, tuple(labels), len(numbers))


def as_dict(scored: Scored, *, per_class: bool) -> dict[str, Any]:
    """PQ, SQ and RQ of all classes, things and stuff, the number of images, and columns by class where asked."""
    columns = {"classes": list(scored.names), "category_ids": list(scored.category_ids)}
    values = {name: column.tolist() for name, column in scored.quality.by_class().items()}
    classes = {"per_class": {**columns, **values}} if per_class else {}
    return {**scored.quality.compute(), "images": scored.images, **classes}


def as_table(scored: Scored) -> Table:
    """One row for each class that occurs, in percent."""
    columns = scored.quality.by_class()
    table = Table("class")
    for name in columns:
        table.add_column(name, justify="right")
    for name, *values in zip(scored.names, *columns.values(), strict=True):
        if not np.isnan(values[0]):
            table.add_row(name, *(f"{value:.2%}" for value in values))
    return table


def _read(path: Path, folder: Path, content: Any) -> _Side:
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise DataError(f"{path} is no panoptic JSON: it has no list of annotations")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    records: Records = content["annotations"]
    check_records(path, "annotations", records, ("image_id", "file_name", "segments_info"))
    for key in ("image_id", "file_name"):
        twice = [name for name, times in Counter(str(record[key]) for record in records).items() if times > 1]
        if twice:
            raise DataError(f"{path}: {len(twice)} {key}s occur more than once: {listed(twice)}")
    return _Side(path, folder, {record["image_id"]: record for record in records})


def _measure(quality: PanopticQuality, sides: tuple[_Side, _Side], number: Id, labels: dict[Id, int]) -> Any:
    truth, found = (_read_ids(side.file(number)) for side in sides)
    if truth.shape != found.shape:
        sizes = f"{sides[1].file(number)} is {found.shape}, {sides[0].file(number)} is {truth.shape} (H, W)"
        raise DataError(sizes)
    segments = [side.segments(number, labels) for side in sides]
    present = set(np.unique(found).tolist()) - {VOID}
    for strange, where in ((present - set(segments[1]), "JSON"), (set(segments[1]) - present, "map")):
        if strange:
            raise DataError(f"{sides[1].file(number)}: its {where} lacks the segments {listed(sorted(strange))}")
    return quality.measure(truth, segments[0], found, segments[1])


def _read_ids(path: Path) -> Ints:
    """(H, W): red + 256 green + 65536 blue."""
    colours = read_image(path).astype(np.int64)
    return np.asarray(colours @ np.array([1, 256, 65536]))

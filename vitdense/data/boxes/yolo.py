"""`yolo`: text files of boxes or outlines in shares of the picture, one line for each thing."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from vitdense.contracts import DATA, Split
from vitdense.data.audit import THREADS
from vitdense.data.boxes.records import BadRecordError, Fault, Record, Records, Things, check_box, described, short
from vitdense.data.boxes.samples import BoxDataConfig, BoxSamples
from vitdense.data.boxes.segments import Segment, parse_segment
from vitdense.data.boxes.views import Size
from vitdense.data.images import SUFFIXES, read_size
from vitdense.errors import DataError

LAYOUT = """expected
  ROOT/data.yaml                   names: {0: cat, 1: dog}, and where they are not these: train: FOLDER, val: FOLDER
  ROOT/images/{train,val}/x.jpg
  ROOT/labels/{train,val}/x.txt    class cx cy width height, or class x y x y x y ..., all in 0..1"""

_SLACK = 1e-3
"""Shares above 1 by no more than this are rounding."""


@DATA.register("yolo")
class YoloConfig(BoxDataConfig):
    """`yaml` is the file with the names; its splits are folders, lists of files, or several of these, and labels lie
    where `images` in a picture's path is `labels`. A picture without a label file shows nothing.
    """

    yaml: str = "data.yaml"
    masks: bool = False

    def build(self, split: Split) -> BoxSamples:
        """The samples of a split; raises DataError that shows the layout where files are missing."""
        if self.root is None:
            raise DataError(f"data 'yolo' needs data.root=ROOT; {LAYOUT}")
        path = Path(self.root) / self.yaml
        content = _load(path)
        names = parse_names(path, content.get("names"))
        images = list(dict.fromkeys(_pictures(path, content, split)))
        if not images:
            raise DataError(f"{path}: no pictures in the split {split!r}; {LAYOUT}")
        labels = [_label_file(image) for image in images]
        faults = [] if any(label.exists() for label in labels) else [_nothing(labels)]
        faults += _strays(labels)
        reader = _Reader(tuple(names), masks=self.masks)
        with ThreadPoolExecutor(THREADS) as pool:
            read = pool.map(reader.read, images, labels)
        records = []
        for record, bad in read:
            faults += bad
            if record is not None:
                records.append(record)
        found = Records(tuple(names.values()), tuple(records), tuple(faults), tuple(names))
        return self.samples(found, split, masks=self.masks)


def parse_names(path: Path, given: object) -> dict[int, str]:
    """Names by number, from a list or a mapping, sorted by number. Raises DataError."""
    found = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(found, dict) or not found or not all(map(_is_name, *zip(*found.items(), strict=True))):
        raise DataError(f"{path}: names = {short(given)}; expected a list of names, or a mapping of numbers to names")
    names = {number: str(name) for number, name in sorted(found.items())}
    if len(set(names.values())) != len(names):
        raise DataError(f"{path}: names = {short(given)}: two classes have one name")
    return names


def _is_name(number: object, name: object) -> bool:
    return type(number) is int and number >= 0 and isinstance(name, str | int) and str(name) != ""


class _Reader:
    """Reads a picture's header and its label file."""

    def __init__(self, numbers: Sequence[int], *, masks: bool) -> None:
        self.indices = {number: index for index, number in enumerate(numbers)}
        self.masks = masks

    def read(self, image: Path, label: Path) -> tuple[Record | None, list[Fault]]:
        """The record, None where the picture can't be read, and the faults of its lines."""
        try:
            size = read_size(image)
            lines = label.read_text(encoding="utf-8").splitlines() if label.exists() else []
        except DataError as fault:
            return None, [Fault("unreadable pictures", str(fault))]
        except (OSError, UnicodeDecodeError) as fault:
            return None, [Fault("unreadable labels", f"{label}: {fault}")]
        things, faults = Things(), []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                self._line(line.split(), size, things)
            except BadRecordError as fault:
                faults.append(fault.at(f"{label}:{number}"))
        return things.record(image.name, image, size, str(label)), faults

    def _line(self, words: list[str], size: Size, things: Things) -> None:
        values = [_number(word) for word in words]
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise BadRecordError(
                "lines of another length",
                f"{len(values)} numbers; expected class and cx cy width height, or class and 3 points",
            )
        if values[0] not in self.indices:
            known = described(self.indices)
            raise BadRecordError("unknown categories", f"class = {short(words[0])}; allowed: {known}")
        if max(values[1:]) > 1 + _SLACK or min(values[1:]) < -_SLACK:
            if len(values) == 5 and min(values[3:]) < 0:
                raise BadRecordError("boxes of negative size", f"width and height = {values[3]:g}, {values[4]:g}")
            raise BadRecordError(
                "lines not in shares", f"{short(values[1:])}: shares of the picture lie in 0..1, pixels don't"
            )
        box, segment = self._thing(values[1:], size)
        check_box(box, size)
        things.add(box, self.indices[int(values[0])], crowd=False, area=None, segment=segment)

    def _thing(self, values: list[float], size: Size) -> tuple[tuple[float, float, float, float], Segment | None]:
        height, width = size
        if len(values) == 4:
            if self.masks:
                raise BadRecordError("things without an outline", "a box alone, but data.masks=true")
            x, y, wide, tall = values[0] * width, values[1] * height, values[2] * width, values[3] * height
            return (x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2), None
        points = [value * side for value, side in zip(values, [width, height] * (len(values) // 2), strict=True)]
        box = min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])
        return box, parse_segment([points], size) if self.masks else None


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRecordError("lines of other things", f"{short(word)} is no finite number")
    return value


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as fault:
        reason = "no such file" if isinstance(fault, FileNotFoundError) else " ".join(str(fault).split())
        raise DataError(f"{path}: {reason}; {LAYOUT}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a mapping with 'names'; {LAYOUT}")
    return content


def _pictures(path: Path, content: dict[str, Any], split: Split) -> Iterator[Path]:
    """The pictures of a split; a relative place is one below the file's folder, or below its `path`."""
    given = content.get(split, f"images/{split}")
    below = content.get("path", ".")
    places = given if isinstance(given, list) else [given]
    if not isinstance(below, str) or not all(isinstance(place, str) for place in places):
        raise DataError(f"{path}: {split} = {short(given)}, path = {short(below)}; expected folders or lists of files")
    for place in places:
        candidates = [path.parent / below / place, path.parent / place]
        found = next((each for each in candidates if each.exists()), None)
        if found is None:
            raise DataError(f"{path}: {split} = {place}: no such folder or list: {candidates[0]}; {LAYOUT}")
        yield from _below(found) if found.is_dir() else _listed(found)


def _below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.name[0] != "."]


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{path}: {fault}") from None
    return [path.parent / line.strip() for line in lines if line.strip()]


def _label_file(image: Path) -> Path:
    """The last folder `images` becomes `labels`; without one, labels lie beside the pictures."""
    parts = list(image.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts)


def _nothing(labels: Sequence[Path]) -> Fault:
    return Fault("nothing to find", f"{labels[0].parent}: not one of {len(labels)} pictures has a label file")


def _strays(labels: Sequence[Path]) -> list[Fault]:
    """Label files whose picture is missing."""
    known, folders = set(labels), sorted({label.parent for label in labels})
    return [
        Fault("labels without a picture", f"{path}: no picture belongs to it")
        for folder in folders
        for path in sorted(folder.glob("*.txt"))
        if path not in known and path.name != "classes.txt" and folder.name != "images"
    ]

"""COCO's JSON of instances, read record by record: what can't be used is named and left out."""

import json
import mmap
import reprlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vitdense.data.boxes.records import (
    BadRecordError,
    Fault,
    Record,
    Records,
    Things,
    check_box,
    described,
    mixed_up,
    number,
    short,
    whole,
)
from vitdense.data.boxes.segments import Segment, parse_segment
from vitdense.data.boxes.views import Size
from vitdense.data.images import MAX_PIXELS, read_size
from vitdense.errors import DataError

_CATEGORIES = b'"categories"'


def read_coco(path: Path, images: Path, *, masks: bool) -> Records:
    """The pictures of an annotation file and what is in them. Where an outline is bad the box stays, unless `masks` are
    wanted. Raises DataError where the file as a whole is none.
    """
    content = load_coco(path)
    categories = parse_categories(path, content["categories"])
    reader = CocoReader(path, images, tuple(categories), masks=masks)
    reader.read_images(content["images"])
    reader.read_annotations(content["annotations"])
    return Records(
        tuple(categories.values()),
        reader.records(),
        tuple(reader.faults),
        tuple(categories),
        {reader.names[image]: image for image in reader.things},
    )


def read_categories(path: Path) -> dict[int, str]:
    """Names by id, sorted by id; reads no more of a large file than it must."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            place = content.find(_CATEGORIES)
            if place < 0 or content.find(_CATEGORIES, place + 1) >= 0:
                raise ValueError("not exactly one list")
            start, end = content.find(b"[", place), content.find(b"]", place)
            return parse_categories(path, json.loads(content[start : end + 1]))
    except (OSError, ValueError):  # what the shortcut can't read, or finds wrong, is told by the long way
        return parse_categories(path, load_coco(path)["categories"])


def parse_categories(path: Path, given: list[Any]) -> dict[int, str]:
    """Names by id, sorted by id, from the file's `categories`; this is the one order of classes. Raises DataError."""
    found: dict[int, str] = {}
    for index, entry in enumerate(given):
        where = f"{path}: categories[{index}]"
        try:
            if not isinstance(entry, dict):
                raise BadRecordError("bad categories", f"expected an object, given {short(entry)}")
            number, name = whole(entry.get("id"), "id"), entry.get("name")
        except BadRecordError as fault:
            raise DataError(f"{where}: {fault}") from None
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: name = {short(name)}; expected a name")
        if number in found or name in found.values():
            raise DataError(f"{where}: id = {number}, name = {name!r}: ids and names must be different, one is not")
        found[number] = name
    if not found:
        raise DataError(f"{path}: 'categories' is empty; it names the classes")
    return dict(sorted(found.items()))


def load_coco(path: Path) -> dict[str, Any]:
    """The file's lists of images, annotations and categories; DataError where they are none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as fault:
        reason = "no such file" if isinstance(fault, FileNotFoundError) else f"not readable as JSON: {fault}"
        raise DataError(f"{path}: {reason}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected COCO's object of 'images', 'annotations' and 'categories'")
    for name in ("images", "annotations", "categories"):
        if not isinstance(content.get(name), list):
            given = type(content[name]).__name__ if name in content else "nothing"
            raise DataError(f"{path}: {name!r} must be a list, given {given}")
    if not content["images"]:
        raise DataError(f"{path}: 'images' is empty")
    return content


class CocoReader:
    """Gathers the things of each picture; `things` has the pictures that can be used, by their id."""

    def __init__(self, path: Path, images: Path, categories: tuple[int, ...], *, masks: bool) -> None:
        self.path, self.images, self.masks = path, images, masks
        self.labels = {number: index for index, number in enumerate(categories)}
        self.faults: list[Fault] = []
        self.things: dict[int, Things] = {}
        self.names: dict[int, str] = {}
        self._sizes: dict[int, Size] = {}
        self._places: dict[int, int] = {}
        self._unusable: set[int] = set()
        self._files: set[str] = set()
        self._ids: set[int] = set()
        self._raw: list[tuple[list[float], Size]] = []

    def read_images(self, given: list[Any]) -> None:
        """The pictures; one whose record is bad takes its annotations with it, silently."""
        for index, entry in enumerate(given):
            try:
                self._image(index, entry)
            except BadRecordError as fault:
                self.faults.append(fault.at(f"{self.path}: images[{index}]{_id_of(entry)}"))
                if isinstance(entry, dict) and isinstance(entry.get("id"), int) and entry["id"] not in self.things:
                    self._unusable.add(entry["id"])

    def _image(self, index: int, entry: object) -> None:
        if not isinstance(entry, dict):
            raise BadRecordError("bad pictures", f"expected an object, given {short(entry)}")
        image = whole(entry.get("id"), "id")
        if image in self.things:
            raise BadRecordError("ids that come twice", f"images[{self._places[image]}] has this id already")
        name = entry.get("file_name")
        if not isinstance(name, str) or not name or "\0" in name:
            raise BadRecordError("bad file names", f"file_name = {short(name)}; expected a path below {self.images}")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BadRecordError("bad file names", f"file_name = {short(name)} leaves {self.images}")
        if name in self._files:
            raise BadRecordError("file names that come twice", f"file_name = {name!r} belongs to another picture too")
        self._sizes[image] = self._size(entry, name)
        self._files.add(name)
        self.names[image], self._places[image], self.things[image] = name, index, Things()

    def _size(self, entry: Mapping[str, Any], name: str) -> Size:
        """(H, W) as the file says, or as the picture's header does where it says nothing."""
        if "width" not in entry and "height" not in entry:
            try:
                return read_size(self.images / name)
            except DataError as fault:
                raise BadRecordError("unreadable pictures", f"no 'width' and 'height', and {fault}") from None
        height, width = whole(entry.get("height"), "height", least=1), whole(entry.get("width"), "width", least=1)
        if height * width > MAX_PIXELS:
            raise BadRecordError("bad sizes", f"{width} x {height} pixels; at most {MAX_PIXELS:,} are allowed")
        return height, width

    def read_annotations(self, given: list[Any]) -> None:
        """The things, each in its picture."""
        for index, entry in enumerate(given):
            try:
                self._annotation(entry)
            except BadRecordError as fault:
                self._note(index, entry, fault)
        if not given:
            self.faults.append(Fault("nothing to find", f"{self.path}: 'annotations' is empty"))
        if self._raw:
            boxes, sizes = zip(*self._raw, strict=True)
            told = mixed_up(np.array(boxes, np.float64), np.array(sizes, np.float64))
            if told is not None:
                self.faults.insert(0, Fault("boxes of another kind", f"{self.path}: {told}"))
        self._raw.clear()

    def _note(self, index: int, entry: object, fault: BadRecordError) -> None:
        self.faults.append(fault.at(f"{self.path}: annotations[{index}]{_id_of(entry)}"))

    def _annotation(self, entry: object) -> None:
        if not isinstance(entry, dict):
            raise BadRecordError("bad annotations", f"expected an object, given {short(entry)}")
        image = whole(entry.get("image_id"), "image_id")
        if image in self._unusable:
            return
        if image not in self.things:
            raise BadRecordError("unknown pictures", f"image_id = {image}: no picture of 'images' has this id")
        self._number(entry)
        label = self._label(entry)
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1) or isinstance(crowd, float):
            raise BadRecordError("bad iscrowd", f"iscrowd = {short(crowd)}; allowed: 0, 1")
        size = self._sizes[image]
        box = self._box(entry, size)
        area = number(entry["area"], "area") if "area" in entry else None
        if area is not None and area < 0:
            raise BadRecordError("bad areas", f"area = {area:g}; expected 0 or more")
        segment, fault = self._segment(entry, size)
        if fault is None or not self.masks:
            kept = segment if self.masks else None
            self.things[image].add(box, label, crowd=bool(crowd), area=area, segment=kept)
        if fault is not None:
            raise fault

    def _number(self, entry: Mapping[str, Any]) -> None:
        """Annotations may have no id, but not one that another has."""
        if "id" not in entry:
            return
        found = whole(entry["id"], "id")
        if found in self._ids:
            raise BadRecordError("ids that come twice", "another annotation has this id already")
        self._ids.add(found)

    def _label(self, entry: Mapping[str, Any]) -> int:
        found = whole(entry.get("category_id"), "category_id")
        if found not in self.labels:
            known = described(self.labels)
            raise BadRecordError("unknown categories", f"category_id = {found}: no such category; allowed: {known}")
        return self.labels[found]

    def _box(self, entry: Mapping[str, Any], size: Size) -> tuple[float, float, float, float]:
        given = entry.get("bbox")
        if not isinstance(given, list) or len(given) != 4:
            raise BadRecordError("bad boxes", f"bbox = {short(given)}; expected [x, y, width, height]")
        try:
            x, y, width, height = (number(value, "bbox") for value in given)
            self._raw.append(([x, y, width, height], size))
            box = x, y, x + width, y + height
            check_box(box, size)
        except BadRecordError as fault:
            raise BadRecordError(fault.kind, f"bbox = {short(given)}: {fault}") from None
        return box

    def _segment(self, entry: Mapping[str, Any], size: Size) -> tuple[Segment | None, BadRecordError | None]:
        """The outline, or what is wrong with it; one that nobody wants may be missing."""
        given = entry.get("segmentation")
        if (given is None or given == []) and not self.masks:
            return None, None
        if given is None or given == []:
            return None, BadRecordError("things without an outline", "no 'segmentation', but data.masks=true")
        try:
            return parse_segment(given, size), None
        except ValueError as fault:
            return None, BadRecordError("bad outlines", f"segmentation: {fault}")

    def records(self) -> tuple[Record, ...]:
        """In the order of the file."""
        return tuple(
            things.record(
                self.names[image],
                self.images / self.names[image],
                self._sizes[image],
                f"{self.path}: images[{self._places[image]}] (id {image})",
            )
            for image, things in self.things.items()
        )


def _id_of(entry: object) -> str:
    found = entry.get("id") if isinstance(entry, dict) else None
    return "" if found is None else f" (id {short(found) if isinstance(found, int) else reprlib.repr(found)})"

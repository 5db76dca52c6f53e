"""COCO's JSON: ground truth and results as columns, every fault of them in one message."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitdense.errors import DataError
from vitdense.metrics.coco.masks import areas_of, boxes_of
from vitdense.metrics.coco.things import Floats, FoundThings, Ints, TrueThings
from vitdense.scoring.coco_masks import as_rles
from vitdense.scoring.pairs import listed

Kind = Literal["boxes", "masks"]
Records = list[dict[str, Any]]
Id = int | str


@dataclass(frozen=True)
class Truth:
    """Ground truth; pictures and categories in the order of their ids, as pycocotools takes them."""

    path: Path
    pictures: dict[Id, int]
    categories: dict[Id, int]
    names: tuple[str, ...]
    sizes: list[tuple[int, int] | None]
    things: TrueThings
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """What was found, and what to tell about it."""

    things: FoundThings
    warnings: list[str] = field(default_factory=list)


def read_truth(path: Path, kind: Kind) -> Truth:
    """Ground truth of boxes or masks; DataError names what is wrong with the file."""
    content = read_json(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise DataError(f"{path} is no ground truth: it must be an object with lists of {', '.join(parts)}")
    images, categories = (_by_id(path, part, content[part]) for part in ("images", "categories"))
    names = tuple(str(record.get("name", number)) for number, record in categories.items())
    sizes = [_size(record) for record in images.values()]
    places = [{number: index for index, number in enumerate(part)} for part in (images, categories)]
    all_records: Records = content["annotations"]
    wanted = ("image_id", "category_id", "bbox" if kind == "boxes" else "segmentation")
    check_records(path, "annotations", all_records, wanted)
    records = [
        record for record in all_records if record["image_id"] in places[0] and record["category_id"] in places[1]
    ]
    pictures, labels = _indices(records, places[0], places[1])
    masks = as_rles(path, "annotation", records, pictures, sizes) if kind == "masks" else None
    boxes = _boxes(path, "annotation", records) if kind == "boxes" else np.zeros((len(records), 4))
    own = areas_of(masks) if masks is not None else boxes[:, 2] * boxes[:, 3]
    given = [record.get("area", area) for record, area in zip(records, own.tolist(), strict=True)]
    areas = _numbers(path, "annotation", "area", given)
    crowd = np.array([bool(record.get("iscrowd", 0)) for record in records], np.bool_)
    things = TrueThings(pictures, labels, boxes, areas, crowd, masks)
    return Truth(path, places[0], places[1], names, sizes, things, _doubts(all_records, records))


def read_results(path: Path, truth: Truth, kind: Kind) -> Results:
    """Results that belong to a truth; DataError names what is wrong with the file.

    As in pycocotools, sizes are told by boxes wherever the first record has one, and boxes may be those around masks.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise DataError(f"{path} is no list of results, but {_kind_of(records)}")
    boxed = bool(records) and isinstance(records[0], dict) and bool(records[0].get("bbox"))
    masked = kind == "masks" or (not boxed and bool(records) and _has(records[0], "segmentation"))
    wanted = ["image_id", "category_id", "score", *(["segmentation"] if masked else []), *(["bbox"] if boxed else [])]
    check_records(path, "results", records, wanted if masked or boxed else [*wanted, "bbox"])
    for key, known in (("image_id", truth.pictures), ("category_id", truth.categories)):
        _check_ids(path, key, [record[key] for record in records], known, truth.path)
    pictures, labels = _indices(records, truth.pictures, truth.categories)
    scores = _numbers(path, "result", "score", [record["score"] for record in records])
    masks = as_rles(path, "result", records, pictures, truth.sizes) if masked else None
    warnings = []
    if masks is None or boxed:
        boxes = _boxes(path, "result", records)
        areas = boxes[:, 2] * boxes[:, 3]
    else:
        boxes, areas = boxes_of(masks), areas_of(masks)
    if boxed and kind == "masks":
        warnings.append("the results have a bbox: as in pycocotools, sizes are told by it and not by the mask")
    things = FoundThings(pictures, labels, boxes, scores, areas, masks if kind == "masks" else None)
    return Results(things, warnings)


def read_json(path: Path) -> Any:
    """What a file holds; DataError where it is absent or no JSON."""
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no JSON: {error}") from None


def check_records(place: object, what: str, records: Sequence[Any], keys: Iterable[str]) -> None:
    """Each record must be an object with these keys; place and what: for messages, as in "a.json" and "results"."""
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{place}: number {index} of the {what} is no object, but {_kind_of(record)}")
    for key in keys:
        lacking = [index for index, record in enumerate(records) if key not in record]
        if lacking:
            raise DataError(f"{place}: {len(lacking)} {what} have no {key!r}: {listed(lacking)} (counted from 0)")


def _has(record: object, key: str) -> bool:
    return isinstance(record, dict) and key in record


def _by_id(path: Path, part: str, records: Records) -> dict[Id, dict[str, Any]]:
    """Records by id, sorted; one id twice, or ids of several kinds, are an error."""
    check_records(path, part, records, ["id"])
    ids = [record["id"] for record in records]
    strangers = [number for number in ids if isinstance(number, bool) or not isinstance(number, int | str)]
    if strangers or len({type(number) for number in ids}) > 1:
        raise DataError(f"{path}: ids of {part} must be all whole numbers or all strings, given {listed(ids)}")
    if len(set(ids)) < len(ids):
        twice = sorted(number for number, times in Counter(ids).items() if times > 1)
        raise DataError(f"{path}: {len(twice)} ids of {part} occur more than once: {listed(twice)}")
    return dict(sorted(zip(ids, records, strict=True), key=lambda item: item[0]))


def _size(record: dict[str, Any]) -> tuple[int, int] | None:
    sides = record.get("height"), record.get("width")
    return (sides[0], sides[1]) if isinstance(sides[0], int) and isinstance(sides[1], int) else None


def _indices(records: Records, pictures: dict[Id, int], categories: dict[Id, int]) -> tuple[Ints, Ints]:
    return (
        np.array([pictures[record["image_id"]] for record in records], np.int64),
        np.array([categories[record["category_id"]] for record in records], np.int64),
    )


def _check_ids(path: Path, key: str, ids: list[Any], known: dict[Id, int], truth: Path) -> None:
    strangers = [number for number in ids if not isinstance(number, int | str) or number not in known]
    if strangers:
        shown = listed(list(dict.fromkeys(map(repr, strangers))))
        kinds = f"; there they are {_kind_of(next(iter(known)))}s" if known else ""
        raise DataError(f"{path}: {len(strangers)} results are of {key}s that {truth} does not know: {shown}{kinds}")


def _boxes(path: Path, what: str, records: Records) -> Floats:
    rows = [record["bbox"] for record in records]
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 4:
            raise DataError(f"{path}: bbox of {what} {index} must be [x, y, width, height], given {row!r}")
    flat = [value for row in rows for value in row]
    return _numbers(path, what, "bbox", flat, each=4).reshape(-1, 4)


def _numbers(path: Path, what: str, key: str, values: list[Any], *, each: int = 1) -> Floats:
    """Finite numbers, `each` of which belong to one record."""
    wrong: list[int] = []
    if not set(map(type, values)) <= {int, float}:
        wrong = [index for index, value in enumerate(values) if type(value) not in (int, float)]
    array: Floats = np.array([] if wrong else values, np.float64)
    wrong += np.flatnonzero(~np.isfinite(array)).tolist()
    if wrong:
        first = wrong[0]
        count = len({index // each for index in wrong})
        place = f"{what} {first // each} has {values[first]!r}"
        raise DataError(f"{path}: {key} of {count} {what}s is no finite number: {place}")
    return array


def _doubts(every: Records, known: Records) -> list[str]:
    """What a user may want to know about a truth that can be used."""
    doubts = []
    if len(known) < len(every):
        left = len(every) - len(known)
        doubts.append(f"{left} annotations are left out: their picture or category is not in the truth")
    if any(record.get("id") == 0 for record in known):
        doubts.append("an annotation has id 0: it counts here, while pycocotools takes what it matches for wrong")
    return doubts


def _kind_of(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)

"""Segments as COCO's panoptic results: maps whose colours are ids, and one JSON of all pictures
(https://cocodataset.org/#format-results)."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vitdense.coco_json import Id
from vitdense.contracts import Segments

Palette = Sequence[tuple[int, int, int]]
Record = dict[str, Any]

_SHADES = 8
"""So many things of a class are told apart by how dark they are, before the first shade comes again."""


def to_panoptic(found: Segments, palette: Palette) -> tuple[NDArray[np.uint8], list[Record]]:
    """Segments of a picture -> the map (H, W, 3) uint8 that a PNG holds, whose id = R + 256 G + 65536 B is 0 where
    nothing is said; and its `segments_info`: id, category_id, area in pixels, bbox [x, y, width, height], iscrowd.

    Ids are shades of the class's colour, so that the map can be looked at. Segments without a pixel are left out.
    """
    ids = found.ids.cpu().numpy()
    labels = found.labels.tolist()
    categories = labels if found.category_ids is None else found.category_ids.tolist()
    numbers = _numbers(labels, palette)
    areas = np.bincount(ids.ravel(), minlength=len(labels) + 1)[1:].tolist()
    places = ndimage.find_objects(ids, max_label=len(labels))
    segments = [
        {"id": number, "category_id": category, "area": area, "bbox": _bbox(*place), "iscrowd": 0}
        for number, category, area, place in zip(numbers, categories, areas, places, strict=True)
        if place is not None
    ]
    table = np.array([0, *numbers])
    colours = np.stack([table >> shift & 255 for shift in (0, 8, 16)], axis=1).astype(np.uint8)  # (n + 1, 3)
    return colours[ids], segments


def panoptic_categories(
    classes: Sequence[str], palette: Palette, stuff: Collection[int], category_ids: Sequence[int] = ()
) -> list[Record]:
    """`categories` of a panoptic file: id, name, isthing and color; stuff: class indices that are no things; without
    category_ids the ids are class indices."""
    numbers = category_ids or range(len(classes))
    rows = enumerate(zip(numbers, classes, palette, strict=True))
    return [
        {"id": number, "name": name, "isthing": int(index not in stuff), "color": list(colour)}
        for index, (number, name, colour) in rows
    ]


def panoptic_annotation(image_id: Id, file_name: str, segments: list[Record]) -> Record:
    """What a panoptic file's `annotations` say of one picture; `file_name` is its map's, from the maps' folder."""
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments}


def _numbers(labels: Iterable[int], palette: Palette) -> list[int]:
    """An id for each segment of a class: its colour, darker from one to the next, and no id twice."""
    taken, seen, numbers = {0}, Counter[int](), []
    for label in labels:
        light = 1 - (seen[label] % _SHADES) / (2 * _SHADES)
        red, green, blue = (round(part * light) for part in palette[label])
        number = red + 256 * green + 65536 * blue
        while number in taken:
            number = (number + 1) % 2**24
        taken.add(number)
        seen[label] += 1
        numbers.append(number)
    return numbers


def _bbox(rows: slice, columns: slice) -> list[int]:
    return [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]

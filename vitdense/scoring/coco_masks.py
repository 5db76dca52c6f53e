"""Masks in COCO's JSON, as polygons or run lengths, compressed or not -> compressed run lengths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitdense.errors import DataError
from vitdense.metrics.coco.things import Ints, Rle

Size = tuple[int, int]


def as_rles(
    path: Path, what: str, records: Sequence[dict[str, Any]], pictures: Ints, sizes: Sequence[Size | None]
) -> list[Rle]:
    """The masks of records, each of its picture's size; DataError names the first that can't be used."""
    masks = []
    for index, (record, picture) in enumerate(zip(records, pictures.tolist(), strict=True)):
        try:
            masks.append(_as_rle(record["segmentation"], sizes[picture]))
        except ValueError as error:
            place = f"{what} {index} of image {record['image_id']!r}"
            raise DataError(f"{path}: segmentation of {place}: {error}") from None
    return masks


def _as_rle(segmentation: Any, size: Size | None) -> Rle:
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, size)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError("must be polygons, or run lengths with size and counts")
    given, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(given, list) or len(given) != 2 or not all(isinstance(side, int) for side in given):
        raise ValueError(f"size must be [height, width], given {given!r}")
    if size is not None and tuple(given) != size:
        raise ValueError(f"its size is {given}, and the image's {list(size)} (H, W)")
    return _from_runs(given, counts) if isinstance(counts, list) else _from_text(given, counts)


def _from_polygons(polygons: list[Any], size: Size | None) -> Rle:
    from pycocotools import mask

    if size is None:
        raise ValueError("polygons need the image's height and width, which the truth lacks")
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon must be a list of x, y, x, y, ... of three corners or more")
    if not polygons:
        raise ValueError("it has no polygon")
    merged: Rle = mask.merge(mask.frPyObjects(polygons, *size))
    return merged


def _from_runs(size: list[int], counts: list[Any]) -> Rle:
    from pycocotools import mask

    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(f"its runs must be of 0 pixels or more, together {size[0] * size[1]}")
    encoded: Rle = mask.frPyObjects({"size": size, "counts": counts}, *size)
    return encoded


def _from_text(size: list[int], counts: Any) -> Rle:
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError("counts must be a string, or a list of runs")
    runs = _runs_of(counts)
    if runs is None or sum(runs) != size[0] * size[1] or min(runs, default=0) < 0:
        raise ValueError(f"its runs are damaged, or are not {size[0] * size[1]} pixels together")
    return Rle(size=size, counts=counts.encode())


def _runs_of(text: str) -> list[int] | None:
    """What the compressed form stands for: six bits a character, five of the number and one whether it goes on; from
    the third run on, differences to the one before the last. None where it ends within a number."""
    runs: list[int] = []
    number = shift = 0
    for byte in text.encode():
        part = byte - 48
        if not 0 <= part < 64:
            return None
        number |= (part & 31) << shift
        shift += 5
        if part & 32:
            continue
        if part & 16:  # the sign
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    return None if shift else runs

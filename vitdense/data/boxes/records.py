"""Things in pictures as files tell of them: one form of record for every layout, and what makes one unusable."""

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdense.data.boxes.segments import Segment
from vitdense.data.boxes.views import Boxes, Size
from vitdense.errors import DataError

LARGEST_ID = 2**63 - 1
"""Numbers of categories and pictures go through int64 tensors."""

MIXED_UP = 2.0
"""A box leaves its picture when it does so by more pixels than this: less is rounding."""


class Fault(NamedTuple):
    """What is wrong with one record, and of which kind that is, for counting."""

    kind: str
    text: str


class BadRecordError(DataError):
    """One record that can't be used; `kind` is what an audit counts it under."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind

    def at(self, where: str) -> Fault:
        """The fault, with the place of the record."""
        return Fault(self.kind, f"{where}: {self}")


@dataclass(frozen=True, slots=True)
class Record:
    """One picture and the N things in it, as the file has them: boxes (N, 4) xyxy pixels, labels (N,) class indices,
    crowd (N,), areas (N,); `segments` are N outlines, or none. `size` is (H, W), `where` the place in the file.
    """

    id: str
    image: Path
    size: Size
    boxes: Boxes
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    segments: tuple[Segment, ...]
    where: str

    def inside(self) -> Boxes:
        """The boxes (N, 4), cut where they reach out of the picture."""
        height, width = self.size
        return np.clip(self.boxes, 0.0, np.array([width, height, width, height], np.float64))


@dataclass(frozen=True)
class Records:
    """A split: `category_ids` are the file's own numbers of `classes`, `image_ids` those of pictures by their id."""

    classes: tuple[str, ...]
    records: tuple[Record, ...]
    faults: tuple[Fault, ...] = ()
    category_ids: tuple[int, ...] = ()
    image_ids: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Things:
    """The things of one picture while its record is being read."""

    boxes: list[Sequence[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    def add(
        self, box: Sequence[float], label: int, *, crowd: bool, area: float | None, segment: Segment | None
    ) -> None:
        """One thing more; without an area it is that of its box."""
        self.boxes.append(box)
        self.labels.append(label)
        self.crowd.append(crowd)
        self.areas.append((box[2] - box[0]) * (box[3] - box[1]) if area is None else area)
        if segment is not None:
            self.segments.append(segment)

    def record(self, name: str, image: Path, size: Size, where: str) -> Record:
        """All of them in arrays."""
        return Record(
            name,
            image,
            size,
            np.array(self.boxes, np.float64).reshape(-1, 4),
            np.array(self.labels, np.int64),
            np.array(self.crowd, np.bool_),
            np.array(self.areas, np.float64),
            tuple(self.segments),
            where,
        )


def check_box(box: Sequence[float], size: Size) -> None:
    """box: xyxy in a picture of (H, W); raises BadRecordError where nothing of it can be seen."""
    x0, y0, x1, y1 = box
    height, width = size
    if not all(map(math.isfinite, box)):
        raise BadRecordError("boxes that are no numbers", "the box is not finite")
    if x1 < x0 or y1 < y0:
        raise BadRecordError("boxes of negative size", f"the box is {x1 - x0:g} x {y1 - y0:g}; sizes are above 0")
    if x1 == x0 or y1 == y0:
        raise BadRecordError("boxes without an area", f"the box is {x1 - x0:g} x {y1 - y0:g}; sizes are above 0")
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise BadRecordError(
            "boxes outside their picture", f"x {x0:g}..{x1:g}, y {y0:g}..{y1:g} in a picture of {width} x {height}"
        )


def mixed_up(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> str | None:
    """boxes: (M, 4) as a file has them, sizes: (M, 2) as (H, W) -> what to say where they are xyxy and not xywh: most
    leave their picture as the one, and none as the other.
    """
    finite = np.isfinite(boxes).all(1)
    first, second, ends = boxes[finite, :2], boxes[finite, 2:], sizes[finite, ::-1] + MIXED_UP
    leaving = int((first + second > ends).any(1).sum())
    if 2 * leaving <= len(first) or not ((second > first) & (second <= ends)).all():
        return None
    return (
        f"boxes seem to be [x0, y0, x1, y1], expected [x, y, width, height]: as such {leaving} of {len(first)} leave"
        " their picture, as corners none does"
    )


def whole(value: object, what: str, *, least: int = -LARGEST_ID, most: int = LARGEST_ID) -> int:
    """A whole number of a file, also one written as 3.0; raises BadRecordError."""
    integral = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not integral or not least <= value <= most:  # type: ignore[operator]
        allowed = f" of {least} or more" if least > -LARGEST_ID else " that fits into 64 bits"
        raise BadRecordError(f"bad {what}", f"{what} = {short(value)}; expected a whole number{allowed}")
    return int(value)  # type: ignore[call-overload,no-any-return]


def number(value: object, what: str) -> float:
    """A finite number of a file; raises BadRecordError."""
    try:
        found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise BadRecordError(f"bad {what}", f"{what} = {short(value)}; expected a finite number")
    return found


def short(value: object) -> str:
    """A value of a file for a message, whatever its length."""
    if isinstance(value, int) and abs(value) > LARGEST_ID:  # str() refuses those of thousands of digits
        return f"a number of {value.bit_length()} bits"
    return reprlib.repr(value) if not isinstance(value, list) else _items(value)


def described(numbers: Iterable[int]) -> str:
    """Numbers for a message: all of a few, else the first and the last."""
    found = sorted(numbers)
    return ", ".join(map(str, found)) if len(found) <= 12 else f"{found[0]}, {found[1]}, ... {found[-1]}"


def _items(values: list[Any]) -> str:
    told = ", ".join(short(value) for value in values[:4])
    return f"[{told}{', ...' if len(values) > 4 else ''}]"

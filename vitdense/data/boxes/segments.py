"""Outlines of things, polygons and run lengths as COCO writes them: checked, and drawn as masks."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitdense.data.boxes.views import Size, View

_BITS, _MORE = 5, 0x20
_LONGEST = 7
"""Characters of one number in compressed run lengths: 35 bits, more than any picture needs."""


@dataclass(frozen=True, slots=True)
class Polygons:
    """The parts of one thing, each (P, 2) as (x, y) in pixels."""

    parts: tuple[NDArray[np.float64], ...]

    def mask(self, size: Size) -> NDArray[np.uint8]:
        """(H, W), 1 where the thing is, as pycocotools draws it."""
        return self._draw(self.parts, size)

    def view(self, view: View) -> NDArray[np.uint8]:
        """(h, w) of a view: the outline moves and is drawn there, so that no pixel is resized."""
        return self._draw(tuple(view.points(part) for part in self.parts), view.size)

    def _draw(self, parts: tuple[NDArray[np.float64], ...], size: Size) -> NDArray[np.uint8]:
        # Imported here: only masks need it.
        from pycocotools import mask as coco_mask

        runs = coco_mask.frPyObjects([part.ravel().tolist() for part in parts], *size)
        return Runs(decode_counts(coco_mask.merge(runs)["counts"].decode()), size).mask(size)


@dataclass(frozen=True, slots=True)
class Runs:
    """Run lengths down the columns of a mask of `size` (H, W), the first of what is outside."""

    counts: NDArray[np.int64]
    size: Size

    def mask(self, size: Size) -> NDArray[np.uint8]:
        """(H, W), 1 where the thing is."""
        assert size == self.size
        values = np.arange(len(self.counts), dtype=np.uint8) & 1
        return np.ascontiguousarray(np.repeat(values, self.counts).reshape(size[1], size[0]).T)

    def view(self, view: View) -> NDArray[np.uint8]:
        """(h, w) of a view, the nearest pixels."""
        mask = self.mask(self.size)
        bottom, right = view.window[2] - self.size[0], view.window[3] - self.size[1]
        if bottom > 0 or right > 0:
            mask = np.pad(mask, ((0, max(bottom, 0)), (0, max(right, 0))), mode="edge")
        return view.cut_mask(mask)


@dataclass(frozen=True, slots=True)
class Area:
    """One of the numbers, from 1 to 255, that a map (H, W) of a whole picture says where the things are with."""

    map: NDArray[np.uint8]
    number: int

    def mask(self, size: Size) -> NDArray[np.uint8]:
        """(H, W), 1 where the thing is."""
        assert size == self.map.shape
        return np.asarray(self.map == self.number, np.uint8)

    def view(self, view: View) -> NDArray[np.uint8]:
        """(h, w) of a view, the nearest pixels."""
        bottom, right = view.window[2] - self.map.shape[0], view.window[3] - self.map.shape[1]
        mask = self.mask((self.map.shape[0], self.map.shape[1]))
        if bottom > 0 or right > 0:
            mask = np.pad(mask, ((0, max(bottom, 0)), (0, max(right, 0))), mode="edge")
        return view.cut_mask(mask)


Segment = Polygons | Runs | Area


def parse_segment(given: object, size: Size) -> Segment:
    """COCO's `segmentation` of a thing in a picture of (H, W): a list of polygons, or run lengths, compressed or not.

    Raises ValueError that says what is wrong. Run lengths are decoded here: pycocotools trusts them.
    """
    if isinstance(given, Mapping):
        return _runs(given, size)
    if not isinstance(given, list):
        raise ValueError(f"expected polygons or run lengths, given {type(given).__name__}")
    if not given:
        raise ValueError("no polygon")
    return Polygons(tuple(_polygon(index, part, size) for index, part in enumerate(given)))


def _polygon(index: int, part: object, size: Size) -> NDArray[np.float64]:
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        told = f"{len(part)} numbers" if isinstance(part, list) else type(part).__name__
        raise ValueError(f"polygon {index} has {told}; expected [x, y, ...] of 3 points or more")
    try:
        points = np.array(part, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"polygon {index} holds what is no number") from None
    height, width = size
    low, high = np.array([-width, -height]), np.array([2 * width, 2 * height])
    if not (np.isfinite(points).all() and (points >= low).all() and (points <= high).all()):
        raise ValueError(f"polygon {index} leaves the {width} x {height} picture by more than its size")
    return points


def _runs(given: Mapping[object, object], size: Size) -> Runs:
    if given.get("size") != list(size):
        raise ValueError(f"run lengths of size {given.get('size')!r:.40} in a picture of {list(size)} (height, width)")
    counts = given.get("counts")
    if isinstance(counts, str):
        lengths = decode_counts(counts)
    elif isinstance(counts, list) and all(type(count) is int and 0 <= count < 2**40 for count in counts):
        lengths = np.array(counts, np.int64)
    else:
        raise ValueError("run lengths: 'counts' must be a string or a list of whole numbers of 0 or more")
    if len(lengths) == 0 or int(lengths.min()) < 0 or int(lengths.sum()) != size[0] * size[1]:
        total = int(lengths.sum())
        raise ValueError(
            f"run lengths make {total:,} pixels, the {size[1]} x {size[0]} picture has {size[0] * size[1]:,}"
        )
    return Runs(lengths, size)


def decode_counts(text: str) -> NDArray[np.int64]:
    """Compressed run lengths -> the lengths: numbers of 5 bits a character, lowest first, a sign at their end, and from
    the fourth on each as the difference from the last but one. Raises ValueError.
    """
    codes = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or int(codes.min()) < 0 or int(codes.max()) > 63 or codes[-1] & _MORE:
        raise ValueError("compressed run lengths are damaged")
    ends = np.flatnonzero((codes & _MORE) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if int(digits.max()) > _LONGEST:
        raise ValueError("compressed run lengths are damaged: a number is too long")
    places = np.arange(len(codes)) - np.repeat(starts, digits)
    values = np.add.reduceat((codes & 0x1F) << (_BITS * places), starts)
    values -= np.where(codes[ends] & 0x10, np.int64(1) << (_BITS * digits), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values

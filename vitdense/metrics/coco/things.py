"""What COCO's evaluation is over: the things of the truth and those found, as columns over all pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Sizes by name: from and to how many pixels, both included."""
RANGES = np.array(list(AREAS.values()))
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = (1, 10, 100)
"""So many things of a class and picture count, the surest; the last is what precision is told for."""


class Rle(TypedDict):
    """A mask in COCO's run lengths: `size` [H, W], and `counts` in its compressed form."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True)
class TrueThings:
    """G things: pictures (G,) and labels (G,) as indices, boxes (G, 4) xywh in pixels, areas (G,) in pixels by which
    sizes are told, crowd (G,), and masks where those are compared."""

    pictures: Ints
    labels: Ints
    boxes: Floats
    areas: Floats
    crowd: Flags
    masks: Sequence[Rle] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, chosen: Ints) -> "TrueThings":
        """Those at some indices."""
        boxes, masks = np.take(self.boxes, chosen, axis=0), pick(self.masks, chosen)
        columns = (self.pictures[chosen], self.labels[chosen], boxes, self.areas[chosen], self.crowd[chosen])
        return TrueThings(*columns, masks=masks)


@dataclass(frozen=True)
class FoundThings:
    """D things: as TrueThings, with scores (D,); those of one picture and score are in the order of their surety."""

    pictures: Ints
    labels: Ints
    boxes: Floats
    scores: Floats
    areas: Floats
    masks: Sequence[Rle] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, chosen: Ints) -> "FoundThings":
        """Those at some indices."""
        boxes, masks = np.take(self.boxes, chosen, axis=0), pick(self.masks, chosen)
        columns = (self.pictures[chosen], self.labels[chosen], boxes, self.scores[chosen], self.areas[chosen])
        return FoundThings(*columns, masks=masks)

    def without_masks(self) -> "FoundThings":
        """The same, to be compared by boxes."""
        return replace(self, masks=None)


def pick(masks: Sequence[Rle] | None, chosen: Ints) -> list[Rle] | None:
    """The masks at some indices."""
    return None if masks is None else [masks[index] for index in chosen.tolist()]


def stable_order(keys: Ints) -> Ints:
    """keys: (N,) of 0 or more -> the indices that sort them, equal ones in their order."""
    # Sixteen bits are sorted by digits, several times as fast as by comparing.
    small = keys.size == 0 or int(keys.max()) < 2**16
    return np.argsort(keys.astype(np.uint16) if small else keys, kind="stable")


def outside(areas: Floats) -> Flags:
    """areas: (N,) -> (4, N): whether each lies outside each of the ranges."""
    return np.asarray((areas < RANGES[:, :1]) | (areas > RANGES[:, 1:]))


def run_starts(sorted_keys: Ints) -> Ints:
    """(N,) sorted -> where each run of equal ones begins."""
    if not sorted_keys.size:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))


def places_in_runs(sorted_keys: Ints) -> Ints:
    """(N,) sorted -> how many equal ones stand before each."""
    starts = run_starts(sorted_keys)
    lengths = np.diff(np.append(starts, len(sorted_keys)))
    return np.arange(len(sorted_keys)) - np.repeat(starts, lengths)

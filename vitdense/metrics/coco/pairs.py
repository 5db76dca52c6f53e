"""Pairs of a true and a found thing of one class and picture that overlap enough to be matched."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vitdense.metrics.coco.things import THRESHOLDS, Floats, FoundThings, Ints, TrueThings, run_starts

BLOCK = 2**16
"""Pairs that are compared at a time: as many as a CPU's cache holds."""


@dataclass(frozen=True)
class Pairs:
    """found (P,) ascending and true (P,): indices; overlaps (P,): IoU, over the found area alone for a crowd."""

    found: Ints
    true: Ints
    overlaps: Floats


def overlapping(found: FoundThings, found_groups: Ints, truth: TrueThings, true_groups: Ints) -> Pairs:
    """Pairs of equal group, both groups sorted, that reach the lowest threshold: by boxes, or masks where both have."""
    starts = run_starts(found_groups)
    lengths = np.diff(np.append(starts, len(found_groups)))
    first = np.searchsorted(true_groups, found_groups[starts], side="left")
    counts = np.searchsorted(true_groups, found_groups[starts], side="right") - first
    some = counts > 0
    spans = np.stack([starts, lengths, first, counts])[:, some]  # (4, groups)
    compare = _by_boxes if found.masks is None or truth.masks is None else _by_masks
    parts = [each for each in compare(found, truth, spans) if each.found.size]
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    columns = (np.concatenate(column) for column in zip(*((p.found, p.true, p.overlaps) for p in parts), strict=True))
    return Pairs(*columns)


def _by_boxes(found: FoundThings, truth: TrueThings, spans: Ints) -> Iterator[Pairs]:
    """spans: (4, groups), first and number of the found and of the true ones."""
    starts, lengths, first, counts = spans
    each = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    first, counts = np.repeat(first, lengths), np.repeat(counts, lengths)  # now of each thing found
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(BLOCK, counts.sum() + BLOCK, BLOCK), side="left") + 1
    low, found_sides, true_sides = 0, _Sides(found.boxes), _Sides(truth.boxes)
    for high in np.minimum(cuts, len(each)).tolist():
        number = counts[low:high]
        before = np.cumsum(number) - number
        theirs = np.arange(number.sum()) + np.repeat(first[low:high] - before, number)
        ours = np.repeat(each[low:high], number)
        yield _enough(ours, theirs, _compare(found_sides, true_sides, truth, ours, theirs))
        low = high


class _Sides:
    """Boxes (N, 4) xywh as columns that are quick to pick from."""

    def __init__(self, boxes: Floats) -> None:
        self.left, self.top, width, height = (np.ascontiguousarray(column) for column in boxes.T)
        self.right, self.bottom, self.area = width + self.left, height + self.top, width * height


def _compare(found: _Sides, true: _Sides, truth: TrueThings, ours: Ints, theirs: Ints) -> Floats:
    width = np.minimum(found.right[ours], true.right[theirs]) - np.maximum(found.left[ours], true.left[theirs])
    height = np.minimum(found.bottom[ours], true.bottom[theirs]) - np.maximum(found.top[ours], true.top[theirs])
    touching = np.flatnonzero((width > 0) & (height > 0))
    ours, theirs = ours[touching], theirs[touching]
    shared = width[touching] * height[touching]
    area = found.area[ours]
    union = np.where(truth.crowd[theirs], area, area + true.area[theirs] - shared)
    overlaps = np.zeros(len(width))
    overlaps[touching] = shared / union
    return overlaps


def _by_masks(found: FoundThings, truth: TrueThings, spans: Ints) -> Iterator[Pairs]:
    from pycocotools import mask

    assert found.masks is not None
    assert truth.masks is not None
    for start, length, first, count in spans.T.tolist():
        crowd = truth.crowd[first : first + count].astype(np.uint8)
        overlaps = mask.iou(list(found.masks[start : start + length]), list(truth.masks[first : first + count]), crowd)
        ours, theirs = np.indices((length, count)).reshape(2, -1)
        yield _enough(ours + start, theirs + first, np.asarray(overlaps).reshape(-1))


def _enough(ours: Ints, theirs: Ints, overlaps: Floats) -> Pairs:
    kept = np.flatnonzero(overlaps >= THRESHOLDS[0])
    return Pairs(ours[kept], theirs[kept], overlaps[kept])

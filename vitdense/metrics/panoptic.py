"""Panoptic quality (Kirillov et al. 2019, https://arxiv.org/abs/1801.00868), with the numbers of panopticapi."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

VOID = 0
"""The id of pixels that belong to no segment."""
_OFFSET = 2**24  # ids are colours, of three bytes


@dataclass(frozen=True)
class Segment:
    """What the id of a map stands for: a class index, and whether it is a crowd, which only the truth has."""

    label: int
    crowd: bool = False


class PanopticQuality:
    """Counts, for each class, of segments that match (their IoU is above 0.5, so that no other can), that are made up
    and that are missed, and the sum of the IoU of those that match."""

    def __init__(self, things: Sequence[bool]) -> None:
        """things: for each class whether it is one of things; the others are stuff."""
        self.things = np.array(things, np.bool_)
        self.sums: Floats = np.zeros((4, len(things)))  # IoU, matched, made up, missed

    def add(self, share: Floats) -> None:
        """Count a picture, as `measure` gave it."""
        self.sums += share

    def measure(
        self, truth: Ints, true_segments: dict[int, Segment], found: Ints, found_segments: dict[int, Segment]
    ) -> Floats:
        """truth, found: (H, W) ids, VOID where there is no segment -> the picture's share of `sums`, (4, K).

        What of a found segment lies on unlabelled pixels is left out of its IoU; one that lies on them, or on a crowd
        of its class, by more than half counts for nothing.
        """
        share = np.zeros_like(self.sums)
        shared = _count_pairs(truth, found)
        true_areas, found_areas = _areas(truth), _areas(found)
        matched: tuple[set[int], set[int]] = (set(), set())
        for (one, other), pixels in shared.items():
            true, guess = true_segments.get(one), found_segments.get(other)
            if true is None or guess is None or true.crowd or true.label != guess.label:
                continue
            union = true_areas[one] + found_areas[other] - pixels - shared.get((VOID, other), 0)
            if pixels / union > 0.5:
                share[:2, true.label] += pixels / union, 1
                matched[0].add(one)
                matched[1].add(other)
        crowds = {segment.label: number for number, segment in true_segments.items() if segment.crowd}
        for number, segment in true_segments.items():
            share[3, segment.label] += not segment.crowd and number not in matched[0]
        for number, segment in found_segments.items():
            nowhere = shared.get((VOID, number), 0) + shared.get((crowds.get(segment.label, -1), number), 0)
            share[2, segment.label] += number not in matched[1] and nowhere <= found_areas[number] / 2
        return share

    def compute(self) -> dict[str, float]:
        """PQ, SQ and RQ in 0..1, of all classes, of things (_th) and of stuff (_st); NaN where none occurs."""
        columns = self.by_class()
        groups = {"": np.ones_like(self.things), "_th": self.things, "_st": ~self.things}
        occurs = self.sums[1:].sum(axis=0) > 0
        return {
            name + suffix: float(column[group & occurs].mean()) if (group & occurs).any() else float("nan")
            for suffix, group in groups.items()
            for name, column in columns.items()
        }

    def by_class(self) -> dict[str, Floats]:
        """PQ, SQ and RQ (K,), NaN where a class is neither true nor found; SQ is 0 where none matches."""
        overlap, matched, made_up, missed = self.sums
        total = matched + (made_up + missed) / 2
        occurs = total > 0
        quality = np.where(occurs, overlap / np.maximum(total, 0.5), np.nan)
        segmentation = np.where(occurs, overlap / np.maximum(matched, 1), np.nan)
        return {"PQ": quality, "SQ": segmentation, "RQ": np.where(occurs, matched / np.maximum(total, 0.5), np.nan)}


def _areas(ids: Ints) -> dict[int, int]:
    numbers, pixels = np.unique(ids, return_counts=True)
    return dict(zip(numbers.tolist(), pixels.tolist(), strict=True))


def _count_pairs(truth: Ints, found: Ints) -> dict[tuple[int, int], int]:
    """Pixels of each pair of ids that occurs."""
    pairs, pixels = np.unique(truth * _OFFSET + found, return_counts=True)
    ids = zip((pairs // _OFFSET).tolist(), (pairs % _OFFSET).tolist(), strict=True)
    return dict(zip(ids, pixels.tolist(), strict=True))

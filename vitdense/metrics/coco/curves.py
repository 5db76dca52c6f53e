"""Precision and recall of things as COCO's own evaluation gives them (https://cocodataset.org/#detection-eval)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitdense.metrics.coco.matching import Bits, Matches, match, unpack
from vitdense.metrics.coco.pairs import overlapping
from vitdense.metrics.coco.things import (
    AREAS,
    MAX_DETECTIONS,
    RECALLS,
    THRESHOLDS,
    Flags,
    Floats,
    FoundThings,
    Ints,
    TrueThings,
    outside,
    places_in_runs,
    stable_order,
)

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Curves:
    """By threshold (T = 10), recall (R = 101), class (K), size (A = 4) and most detections (M); -1 where absent.

    precision, scores: (T, R, K, A, M), scores being where each recall is reached; recall: (T, K, A, M).
    """

    precision: Floats
    recall: Floats
    scores: Floats
    max_detections: tuple[int, ...]

    def stats(self) -> dict[str, float]:
        """The summary under its usual names, -1 where nothing is there to be found."""
        most, sizes = self.precision[..., -1], ("small", "medium", "large")
        at = {"": slice(None), "50": slice(0, 1), "75": slice(5, 6)}
        values = {f"AP{name}": _mean(most[part, :, :, 0]) for name, part in at.items()}
        values |= {f"AP{name[0]}": _mean(most[..., list(AREAS).index(name)]) for name in sizes}
        values |= {f"AR{number}": _mean(self.recall[..., 0, m]) for m, number in enumerate(self.max_detections)}
        return values | {f"AR{name[0]}": _mean(self.recall[..., list(AREAS).index(name), -1]) for name in sizes}

    def by_class(self) -> dict[str, list[float]]:
        """Columns by class: AP, AP50, AP75 and AR, NaN where the truth has none."""
        most = self.precision[..., 0, -1]  # (T, R, K)
        absent = (self.recall[0, :, 0, -1] < 0)[None]
        columns = {"AP": most.mean((0, 1)), "AP50": most[0].mean(0), "AP75": most[5].mean(0)}
        columns["AR"] = self.recall[..., 0, -1].mean(0)
        return {name: np.where(absent[0], np.nan, column).tolist() for name, column in columns.items()}


def evaluate(
    truth: TrueThings,
    found: FoundThings,
    *,
    num_pictures: int,
    num_classes: int,
    max_detections: tuple[int, ...] = MAX_DETECTIONS,
) -> Curves:
    """Curves of what was found, in float64 and equal to pycocotools' COCOeval.

    Pictures and labels are indices in the order of their ids: where scores are equal, the order decides. max_detections
    ascends.
    """
    ranked = _rank(found, num_pictures, max_detections[-1])
    truth = truth.at(_by_group(truth.labels, truth.pictures))
    groups, true_groups = (each.labels * num_pictures + each.pictures for each in (ranked.found, truth))
    pairs = overlapping(ranked.found, groups, truth, true_groups)
    matches = match(pairs, groups[pairs.found], len(groups), truth.areas, truth.crowd)
    wanted = ~(outside(truth.areas) | truth.crowd)
    totals = np.stack([np.bincount(truth.labels[flags], minlength=num_classes) for flags in wanted])
    return _accumulate(ranked, matches, totals, max_detections)


@dataclass(frozen=True)
class _Ranked:
    """Found things by class, picture and falling score; ranks (D,) within class and picture; and the order by class
    and falling score alone."""

    found: FoundThings
    ranks: Ints
    by_class: Ints


def _rank(found: FoundThings, num_pictures: int, limit: int) -> _Ranked:
    order = stable_order(found.pictures)
    order = order[np.argsort(-found.scores[order], kind="stable")]  # equal scores: by picture, then by place
    by_class = order[stable_order(found.labels[order])]
    grouped = order[stable_order(found.pictures[order])]
    grouped = grouped[stable_order(found.labels[grouped])]
    ranks = places_in_runs(found.labels[grouped] * num_pictures + found.pictures[grouped])
    kept = ranks < limit
    place = np.full(len(found), -1)
    place[grouped[kept]] = np.arange(kept.sum())
    by_class = place[by_class]
    return _Ranked(found.at(grouped[kept]), ranks[kept], by_class[by_class >= 0])


def _by_group(labels: Ints, pictures: Ints) -> Ints:
    order = stable_order(pictures)
    return order[stable_order(labels[order])]


@dataclass(frozen=True)
class _Line:
    """Found things of one class, surest first: scores, ranks (D,), inside (A, D) the sizes, and their matches (D,)."""

    scores: Floats
    ranks: Ints
    inside: Flags
    matched: Bits
    ignored: Bits

    def at(self, chosen: slice | Flags) -> "_Line":
        """A part of them."""
        matched, ignored = self.matched[chosen], self.ignored[chosen]
        return _Line(self.scores[chosen], self.ranks[chosen], self.inside[:, chosen], matched, ignored)

    def upto(self, rank: int) -> "_Line":
        """Those of a lower rank in their picture."""
        kept = self.ranks < rank
        return self if kept.all() else self.at(kept)


def _accumulate(ranked: _Ranked, matches: Matches, totals: Counts, max_detections: tuple[int, ...]) -> Curves:
    """totals: (A, K) true things that are to be found."""
    order, found = ranked.by_class, ranked.found
    inside = ~outside(found.areas)[:, order]
    everything = _Line(found.scores[order], ranked.ranks[order], inside, matches.matched[order], matches.ignored[order])
    ends = np.cumsum(np.bincount(found.labels, minlength=totals.shape[1])).tolist()
    sizes, classes = totals.shape
    curves = Curves(
        np.full((len(THRESHOLDS), len(RECALLS), classes, sizes, len(max_detections)), -1.0),
        np.full((len(THRESHOLDS), classes, sizes, len(max_detections)), -1.0),
        np.full((len(THRESHOLDS), len(RECALLS), classes, sizes, len(max_detections)), -1.0),
        max_detections,
    )
    for index in np.flatnonzero(totals[0]).tolist():
        line = everything.at(slice(ends[index - 1] if index else 0, ends[index]))
        present = np.flatnonzero(totals[:, index])
        for number, most in enumerate(max_detections):
            precision, recall, scores = _trace(line.upto(most), totals[:, index])
            curves.precision[:, :, index, present, number] = precision[present].transpose(1, 2, 0)
            curves.recall[:, index, present, number] = recall[present].T
            curves.scores[:, :, index, present, number] = scores[present].transpose(1, 2, 0)
    return curves


def _trace(line: _Line, totals: Counts) -> tuple[Floats, Floats, Floats]:
    """A class's precision (A, T, R), recall (A, T) and scores (A, T, R) of `totals` (A,) true things.

    Only what is matched for some size and threshold is looked at by itself; the rest counts as so many false ones.
    """
    hits = np.flatnonzero(line.matched)
    false = np.cumsum(line.inside & (line.matched == 0), axis=1)[:, None, hits]  # (A, 1, C)
    matched = unpack(line.matched[hits])  # (A, T, C)
    right = matched & ~unpack(line.ignored[hits])
    counted = right | (~matched & line.inside[:, None, hits])
    numbers = np.cumsum(right, axis=-1)
    precision = numbers / (np.cumsum(counted, axis=-1) + false + np.spacing(1))
    precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    reached = right.sum(axis=-1)  # (A, T)
    needed = _needed(totals)[:, None]  # (A, 1, R)
    flat = np.flatnonzero(right)  # the places of the 1st, 2nd, ... right one of each row
    before = np.cumsum(reached).reshape(reached.shape) - reached
    there = needed <= reached[..., None]  # (A, T, R)
    places = flat[(before[..., None] + needed - 1)[there]]
    curve, scores = np.zeros(there.shape), np.zeros(there.shape)
    curve[there] = precision.reshape(-1)[places]
    scores[there] = line.scores[hits][places % max(len(hits), 1)]
    if len(line.scores):
        scores[..., 0] = line.scores[0]  # a recall of 0 is reached by whatever comes first
    return curve, reached / np.maximum(totals, 1)[:, None], scores


def _needed(totals: Counts) -> Counts:
    """(A,) -> (A, R): the fewest right ones, at least one, whose share of all, in floats, reaches each recall."""
    guess = np.floor(RECALLS * totals[:, None]).astype(np.int64)
    number = np.maximum(totals, 1)[:, None]
    choices = np.stack([guess - 1, guess, guess + 1, guess + 2])
    enough = choices / number >= RECALLS
    fewest: Counts = np.take_along_axis(choices, enough.argmax(axis=0)[None], axis=0)[0]
    return np.maximum(fewest, 1)


def _mean(values: Floats) -> float:
    present = values[values > -1]
    return float(present.mean()) if present.size else -1.0

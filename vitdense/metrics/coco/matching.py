"""COCO's greedy matching of all classes, pictures, sizes and thresholds at once.

Whether a thing is matched for a size (4) and a threshold (10) is one bit of 64. Things of different classes and
pictures don't meet, so that the n-th comparisons of all of them are made together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vitdense.metrics.coco.pairs import Pairs
from vitdense.metrics.coco.things import (
    RANGES,
    THRESHOLDS,
    Flags,
    Ints,
    outside,
    places_in_runs,
    run_starts,
    stable_order,
)

Bits = NDArray[np.uint64]
_NONE = np.uint64(0)
PORTION = 2**18


@dataclass(frozen=True)
class Matches:
    """Bits of each thing found, (D,): matched at all, and matched with what is ignored (a crowd, another size)."""

    matched: Bits
    ignored: Bits


def size_bits(flags: Flags) -> Bits:
    """(4, N) -> (N,): for each size that is set, the bits of all its thresholds."""
    each = np.uint64(2 ** len(THRESHOLDS) - 1) << _shifts()
    return np.asarray(np.where(flags, each[:, None], _NONE).sum(axis=0, dtype=np.uint64))


def unpack(bits: Bits) -> Flags:
    """(N,) -> (4, 10, N) by size and threshold."""
    shifts = np.arange(len(RANGES) * len(THRESHOLDS), dtype=np.uint64)
    flags = ((bits >> shifts[:, None]) & np.uint64(1)).astype(np.bool_)
    return flags.reshape(len(RANGES), len(THRESHOLDS), -1)


def match(pairs: Pairs, groups: Ints, num_found: int, areas: NDArray[np.float64], crowd: Flags) -> Matches:
    """pairs: found things in the order in which they may choose; groups: (P,) sorted, of which only like ones meet;
    areas, crowd: (G,) of the true things.

    Each takes the free true thing of the greatest overlap, the last of equal ones, and an ignored one only where there
    is no other; a crowd stays free.
    """
    ignored = size_bits(outside(areas) | crowd)
    uses_up = np.where(crowd, _NONE, ~_NONE)
    taken = np.zeros(len(areas), np.uint64)
    matched, in_vain = np.zeros(num_found, np.uint64), np.zeros(num_found, np.uint64)
    for portion, own_groups in _portions(pairs, groups):
        events = _line_up(portion, own_groups, ignored)
        for low, high in zip(events.cuts[:-1], events.cuts[1:], strict=True):
            found, true = events.found[low:high], events.true[low:high]
            mine, theirs = matched[found], taken[true]
            chosen = events.bits[low:high] & ~mine & ~theirs
            matched[found] = mine | chosen
            taken[true] = theirs | (chosen & uses_up[true])
            in_vain[found] |= chosen & ignored[true]
    return Matches(matched, in_vain)


def _portions(pairs: Pairs, groups: Ints) -> Iterator[tuple[Pairs, Ints]]:
    """Whole groups of some PORTION pairs, with their groups: crowded pictures would fill the memory otherwise."""
    starts = np.append(run_starts(groups), len(groups))
    cuts = starts[np.searchsorted(starts, np.arange(PORTION, len(groups), PORTION))]
    for low, high in pairwise([0, *np.unique(cuts[cuts < len(groups)]).tolist(), len(groups)]):
        part = slice(low, high)
        yield Pairs(pairs.found[part], pairs.true[part], pairs.overlaps[part]), groups[part]


@dataclass(frozen=True)
class _Events:
    """Comparisons (E,), in steps from one of `cuts` to the next, in which no thing occurs twice."""

    found: Ints
    true: Ints
    bits: Bits
    cuts: list[int]


def _line_up(pairs: Pairs, groups: Ints, ignored: Bits) -> _Events:
    """Who has several candidates asks those not ignored first, then the others, each by falling overlap."""
    order = np.lexsort((-pairs.true, -pairs.overlaps, pairs.found))
    found, true, groups = pairs.found[order], pairs.true[order], groups[order]
    reached = np.searchsorted(THRESHOLDS, pairs.overlaps[order], side="right")
    bits = _bits_by_reached()[reached]
    changes = np.flatnonzero(found[1:] != found[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [len(found)]]))
    several = np.repeat(lengths > 1, lengths) if len(found) else np.zeros(0, np.bool_)
    again = np.flatnonzero(several)
    first_bits = np.where(several, bits & ~ignored[true], bits)
    turn = np.argsort(np.concatenate([2 * found, 2 * found[again] + 1]), kind="stable")
    picked = np.concatenate([np.arange(len(found)), again])[turn]
    all_bits = np.concatenate([first_bits, bits[again] & ignored[true[again]]])[turn]
    steps = places_in_runs(groups[picked])
    by_step = stable_order(steps)
    cuts = np.concatenate([[0], np.cumsum(np.bincount(steps))]).tolist()
    picked = picked[by_step]
    return _Events(found[picked], true[picked], all_bits[by_step], cuts)


def _bits_by_reached() -> Bits:
    """(11,): for the number of thresholds that an overlap reaches, their bits in every size."""
    low = np.uint64(1) << np.arange(len(THRESHOLDS) + 1, dtype=np.uint64)
    return np.asarray(((low - np.uint64(1)) << _shifts()[:, None]).sum(axis=0, dtype=np.uint64))


def _shifts() -> Bits:
    return np.arange(len(RANGES), dtype=np.uint64) * np.uint64(len(THRESHOLDS))

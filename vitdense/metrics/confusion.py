"""Which classes of things are taken for which others, and what is missed or made up."""

import numpy as np
from numpy.typing import NDArray

from vitdense.metrics.coco.pairs import overlapping
from vitdense.metrics.coco.things import FoundThings, TrueThings, stable_order

LEAST_OVERLAP = 0.5


def confusion(
    truth: TrueThings, found: FoundThings, *, num_classes: int, least_score: float = 0.3
) -> NDArray[np.int64]:
    """Counts (K + 1, K + 1) of true and predicted classes; the last row and column are the background.

    In each picture the surest thing found chooses first, of the true things of any class that overlap it by an IoU of
    0.5 or more that which does so most, its own class first among equals. What stays over was made up or missed; what
    lies in a crowd counts for nothing.
    """
    found = found.at(np.flatnonzero(found.scores >= least_score))
    found = found.at(np.argsort(-found.scores, kind="stable"))
    found = found.at(stable_order(found.pictures))
    truth = truth.at(stable_order(truth.pictures))
    pairs = overlapping(found, found.pictures, truth, truth.pictures)
    strange = found.labels[pairs.found] != truth.labels[pairs.true]
    order = np.lexsort((strange, -pairs.overlaps, pairs.found))
    partner, free = np.full(len(found), -1), ~truth.crowd
    in_crowd = np.zeros(len(found), np.bool_)
    for one, other in zip(pairs.found[order].tolist(), pairs.true[order].tolist(), strict=True):
        if truth.crowd[other]:
            in_crowd[one] = True
        elif free[other] and partner[one] < 0:
            partner[one], free[other] = other, False
    matched = np.flatnonzero(partner >= 0)
    made_up = np.flatnonzero((partner < 0) & ~in_crowd)
    rows = np.concatenate([truth.labels[partner[matched]], np.full(len(made_up), num_classes), truth.labels[free]])
    columns = np.concatenate([found.labels[matched], found.labels[made_up], np.full(free.sum(), num_classes)])
    counts = np.bincount(rows * (num_classes + 1) + columns, minlength=(num_classes + 1) ** 2)
    return counts.reshape(num_classes + 1, num_classes + 1)

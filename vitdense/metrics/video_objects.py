"""J and F of objects followed through a video, as DAVIS measures them (https://arxiv.org/abs/1704.00675)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

TOLERANCE = 0.008
"""How far apart two boundaries may be and still match, in diagonals of the picture."""
_PARTS = 4


class Statistics(NamedTuple):
    """Of an object's scores over time: their mean, the share above 0.5, and by how much the first quarter is better
    than the last."""

    mean: float
    recall: float
    decay: float


def region_similarity(truth: Bools, found: Bools) -> float:
    """J: truth, found (H, W) -> their intersection over union, 1 where both are empty."""
    union = np.count_nonzero(truth | found)
    return np.count_nonzero(truth & found) / union if union else 1.0


def contour_accuracy(truth: Bools, found: Bools, *, tolerance: float = TOLERANCE) -> float:
    """F: truth, found (H, W) -> the harmonic mean of the shares of each boundary that lie near the other.

    Near is at most ceil(tolerance x diagonal) pixels away. An empty boundary has nothing wrong in it: 1 where both are
    empty, 0 where one is.
    """
    radius = int(np.ceil(tolerance * np.linalg.norm(truth.shape)))
    true_edge, found_edge = boundary(truth), boundary(found)
    true_total, found_total = np.count_nonzero(true_edge), np.count_nonzero(found_edge)
    if not true_total or not found_total:
        return float(true_total == found_total)
    precision = np.count_nonzero(found_edge & _widened(true_edge, radius)) / found_total
    recall = np.count_nonzero(true_edge & _widened(found_edge, radius)) / true_total
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(inside: Bools) -> Bools:
    """(H, W): pixels that differ from their right, lower or lower right neighbour, as far as there is one."""
    edge = np.zeros_like(inside)
    edge[:, :-1] |= inside[:, 1:] != inside[:, :-1]
    edge[:-1] |= inside[1:] != inside[:-1]
    edge[:-1, :-1] |= inside[1:, 1:] != inside[:-1, :-1]
    return edge


def score_objects(truth: NDArray[np.integer], found: NDArray[np.integer], objects: Sequence[int]) -> Floats:
    """truth, found: (H, W) of one frame -> (2, K), J and F of each of the objects, which are values of the masks."""
    pairs = [(truth == value, found == value) for value in objects]
    scores = [[measure(*pair) for pair in pairs] for measure in (region_similarity, contour_accuracy)]
    return np.array(scores, np.float64).reshape(2, len(objects))


def statistics(scores: Floats) -> Statistics:
    """scores: (T,) of one object, of which T is 1 or more."""
    # Quarters share the frame that they meet at, and halves are rounded up, as in the published code.
    ends = np.round(np.linspace(1, len(scores), _PARTS + 1) + 1e-10).astype(np.int64) - 1
    first, last = scores[ends[0] : ends[1] + 1], scores[ends[-2] : ends[-1] + 1]
    return Statistics(float(scores.mean()), float((scores > 0.5).mean()), float(first.mean() - last.mean()))


def summarise(objects: Sequence[Floats]) -> Mapping[str, float]:
    """(2, T) of each object, J and F over time -> means over all objects, under the names of DAVIS."""
    means = {
        f"{name}-{what.capitalize()}": float(np.mean([getattr(statistics(each[row]), what) for each in objects]))
        for row, name in enumerate("JF")
        for what in Statistics._fields
    }
    return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2, **means}


def _widened(edge: Bools, radius: int) -> Bools:
    """(H, W): all pixels no farther than `radius` from an edge."""
    across = np.arange(-radius, radius + 1) ** 2
    disk = (across[:, None] + across <= radius**2).astype(np.uint8)
    return cv2.dilate(edge.astype(np.uint8), disk).astype(np.bool_)

"""Crops that overlap a box by as much as was drawn, as SSD trains on (Liu et al. 2016)."""

import numpy as np
from numpy.typing import NDArray

from vitdense.data.boxes.views import Boxes

TRIES = 40
LEAST_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""What a crop is asked for; 1 leaves the picture whole."""


def iou_crop(
    generator: np.random.Generator, frame: tuple[int, int, int, int], boxes: Boxes
) -> tuple[int, int, int, int]:
    """A crop (top, left, bottom, right) of a frame, of 0.3 to 1 of its sides and a shape of 1:2 to 2:1, that holds the
    centre of a box and overlaps one as much as was drawn (Liu et al. 2016, https://arxiv.org/abs/1512.02325).

    The frame itself where nothing is found in so many tries, or was drawn to be.
    """
    least = generator.choice(LEAST_OVERLAPS)
    top, left, bottom, right = frame
    sides = np.array([bottom - top, right - left])
    scales = generator.uniform(0.3, 1.0, (TRIES, 2))
    shares = generator.random((TRIES, 2))
    if least >= 1.0 or not len(boxes):
        return frame
    sizes = np.maximum((sides * scales).astype(np.int64), 1)  # (T, 2)
    starts = np.array([top, left]) + ((sides - sizes) * shares).astype(np.int64)
    crops = np.concatenate([starts, starts + sizes], axis=1)  # (T, 4)
    shape = sizes[:, 1] / sizes[:, 0]
    good = (shape >= 0.5) & (shape <= 2.0) & _holds(crops, boxes, least)
    first = int(good.argmax())
    return tuple(crops[first].tolist()) if good[first] else frame


def _holds(crops: NDArray[np.int64], boxes: Boxes, least: float) -> NDArray[np.bool_]:
    """crops: (T, 4) as (top, left, bottom, right), boxes: (N, 4) -> (T,): a box with its centre in the crop has an IoU
    of `least` or more with it.
    """
    low, high = (
        crops[:, None, 1::-1].astype(np.float64),
        crops[:, None, :1:-1].astype(np.float64),
    )  # (T, 1, 2) as (x, y)
    first, last = boxes[None, :, :2], boxes[None, :, 2:]  # (1, N, 2)
    centres = (first + last) / 2
    inside = ((centres > low) & (centres < high)).all(-1)  # (T, N)
    shared = np.maximum(np.minimum(last, high) - np.maximum(first, low), 0).prod(-1)
    union = (last - first).prod(-1) + (high - low).prod(-1) - shared
    return np.asarray((inside & (shared >= least * union)).any(-1))

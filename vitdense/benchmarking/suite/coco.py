"""COCO's evaluation of boxes: 5,000 pictures, 80 classes, some 7 true things and 100 found ones in each."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.metrics.coco.curves import evaluate
from vitdense.metrics.coco.things import Floats, FoundThings, Ints, TrueThings

CLASSES, DETECTIONS, SIDE = 80, 100, 640
TRIES = 3
"""Found things near each true one; the others of a picture lie anywhere."""


@dataclass(frozen=True)
class Set:
    """Pictures with what is true and what was found."""

    pictures: int
    truth: TrueThings
    found: FoundThings


def make_set(conditions: Conditions) -> Set:
    """Random boxes; those found near true ones are moved by some 6 % and are of their class four times in five."""
    pictures = conditions.batch or (40 if conditions.tiny else 5000)
    rng = np.random.default_rng(SEED)
    numbers = rng.poisson(7, pictures)
    where = np.repeat(np.arange(pictures), numbers)
    labels, boxes = rng.integers(0, CLASSES, len(where)), _anywhere(rng, len(where))
    crowd = rng.random(len(where)) < 0.01
    truth = TrueThings(where, labels, boxes, boxes[:, 2] * boxes[:, 3], crowd)
    near = np.repeat(np.arange(len(where)), TRIES)
    others = np.repeat(np.arange(pictures), np.maximum(DETECTIONS - TRIES * numbers, 0))
    moved = boxes[near] + rng.normal(0, 0.06, (len(near), 4)) * boxes[near][:, [2, 3, 2, 3]]
    moved[:, 2:] = np.maximum(moved[:, 2:], 1)
    right = rng.random(len(near)) < 0.8
    guesses = np.where(right, labels[near], rng.integers(0, CLASSES, len(near)))
    scores = rng.random(len(near) + len(others)) * 0.6
    scores[: len(near)] += 0.4 * rng.random(len(near))
    found = _found(
        np.concatenate([where[near], others]),
        np.concatenate([guesses, rng.integers(0, CLASSES, len(others))]),
        np.concatenate([moved, _anywhere(rng, len(others))]),
        scores,
    )
    return Set(pictures, truth, found)


def _anywhere(rng: np.random.Generator, number: int) -> Floats:
    return np.concatenate([rng.random((number, 2)) * SIDE * 0.7, np.exp(rng.random((number, 2)) * 3.5 + 1.5)], axis=1)


def _found(pictures: Ints, labels: Ints, boxes: Floats, scores: Floats) -> FoundThings:
    order = np.argsort(pictures, kind="stable")
    areas = boxes[:, 2] * boxes[:, 3]
    return FoundThings(pictures[order], labels[order], boxes[order], scores[order], areas[order])


class OurJob(Job):
    """Arrays to curves and their summary."""

    def __init__(self, conditions: Conditions) -> None:
        self.set = make_set(conditions)

    def step(self) -> None:
        """The whole evaluation."""
        self._stats()

    def outcome(self) -> Outcome:
        """The twelve numbers."""
        return {"summary": torch.tensor(list(self._stats().values()), dtype=torch.float64)}

    def _stats(self) -> dict[str, float]:
        data = self.set
        return evaluate(data.truth, data.found, num_pictures=data.pictures, num_classes=CLASSES).stats()


class PeerJob(Job):
    """Records that are loaded and indexed, to the summary."""

    def __init__(self, conditions: Conditions, kind: Callable[[], tuple[Any, Any]]) -> None:
        index, self.evaluation = kind()
        data = make_set(conditions)
        with contextlib.redirect_stdout(io.StringIO()):
            self.truth = _indexed(index(), data.pictures, _true_records(data.truth))
            self.found = _indexed(index(), data.pictures, _found_records(data.found))

    def step(self) -> None:
        """The whole evaluation."""
        self._stats()

    def outcome(self) -> Outcome:
        """The twelve numbers."""
        return {"summary": torch.tensor(self._stats(), dtype=torch.float64)}

    def _stats(self) -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = self.evaluation(self.truth, self.found, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return [float(value) for value in evaluation.stats[:12]]


def _indexed(index: Any, pictures: int, records: list[dict[str, Any]]) -> Any:
    index.dataset = {
        "images": [{"id": picture, "height": SIDE, "width": SIDE} for picture in range(pictures)],
        "categories": [{"id": label, "name": str(label)} for label in range(CLASSES)],
        "annotations": records,
    }
    index.createIndex()
    return index


def _true_records(truth: TrueThings) -> list[dict[str, Any]]:
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    columns = (truth.pictures, truth.labels, truth.boxes, truth.areas, truth.crowd.astype(int))
    return _records(names, columns)


def _found_records(found: FoundThings) -> list[dict[str, Any]]:
    names = ("image_id", "category_id", "bbox", "area", "score")
    columns = (found.pictures, found.labels, found.boxes, found.areas, found.scores)
    return [{**record, "iscrowd": 0} for record in _records(names, columns)]


def _records(names: tuple[str, ...], columns: tuple[Any, ...]) -> list[dict[str, Any]]:
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [{"id": number, **dict(zip(names, row, strict=True))} for number, row in enumerate(rows, start=1)]


def _faster_coco_eval() -> tuple[Any, Any]:
    from faster_coco_eval import COCO, COCOeval_faster

    return COCO, COCOeval_faster


def _pycocotools() -> tuple[Any, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _peer(name: str, needs: str, kind: Callable[[], tuple[Any, Any]]) -> Peer:
    def build(conditions: Conditions) -> Job:
        return PeerJob(conditions, kind)

    return Peer(name, needs, build, lambda conditions: Pair(OurJob(conditions), build(conditions)), bound=1e-12)


ROWS = (
    Row(
        "coco_eval",
        "5,000 pictures, 80 classes, some 7 true boxes and 100 found ones in each, to COCO's summary",
        OurJob,
        (
            _peer("faster-coco-eval", "faster_coco_eval", _faster_coco_eval),
            _peer("pycocotools", "pycocotools", _pycocotools),
        ),
        {"cpu": Goal(0.08, 1.0)},
        (
            "Each begins with what it keeps in memory, ours with arrays, peers with indexed records; none reads JSON. "
            "pycocotools takes a minute a round; `--peers faster-coco-eval` leaves it out.",
            "All twelve numbers agree at 1e-12.",
        ),
    ),
)

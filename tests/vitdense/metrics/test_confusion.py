"""The confusion matrix of things, on a case worked by hand."""

import numpy as np

from vitdense.metrics.coco.things import FoundThings, TrueThings
from vitdense.metrics.confusion import confusion


def test_matches_misses_mistakes_and_crowds_are_counted_once() -> None:
    box = [0.0, 0.0, 10.0, 10.0]
    far, farther = [50.0, 50.0, 10.0, 10.0], [100.0, 100.0, 40.0, 40.0]
    true = [(0, 0, box), (0, 1, far), (1, 1, box), (1, 0, farther)]  # picture, class, box; the last is a crowd
    found = [
        (0, 1, box, 0.9),  # takes class 0 for class 1
        (0, 0, box, 0.8),  # would be right, but comes later: made up
        (0, 1, far, 0.1),  # not sure enough: the true thing is missed
        (1, 1, box, 0.9),  # right
        (1, 0, [110.0, 110.0, 5.0, 5.0], 0.9),  # in the crowd: counts for nothing
        (1, 0, [300.0, 0.0, 5.0, 5.0], 0.9),  # made up
    ]
    truth = TrueThings(
        pictures=np.array([row[0] for row in true]),
        labels=np.array([row[1] for row in true]),
        boxes=np.array([row[2] for row in true]),
        areas=np.full(len(true), 100.0),
        crowd=np.array([False, False, False, True]),
    )
    things = FoundThings(
        pictures=np.array([row[0] for row in found]),
        labels=np.array([row[1] for row in found]),
        boxes=np.array([row[2] for row in found]),
        scores=np.array([row[3] for row in found]),
        areas=np.full(len(found), 100.0),
    )
    shuffled = things.at(np.array([5, 0, 2, 4, 1, 3]))
    for each in (things, shuffled):
        counts = confusion(truth, each, num_classes=2, least_score=0.3)
        assert counts.tolist() == [[0, 1, 0], [0, 1, 1], [2, 0, 0]]


def test_of_boxes_that_overlap_as_much_the_own_class_is_taken() -> None:
    boxes = np.array([[0.0, 0.0, 10.0, 10.0]] * 2)
    pictures, areas = np.zeros(2, np.int64), np.full(2, 100.0)
    truth = TrueThings(pictures, np.array([1, 0]), boxes, areas, np.zeros(2, np.bool_))
    found = FoundThings(pictures, np.array([0, 1]), boxes, np.array([0.9, 0.8]), areas)
    assert confusion(truth, found, num_classes=2).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]

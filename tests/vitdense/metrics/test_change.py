"""F1, precision, recall and IoU of what changed: a matrix by hand, torchmetrics, and where there is none."""

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_f1_score,
    binary_jaccard_index,
    binary_precision,
    binary_recall,
)

from vitdense.contracts import METRICS, Samples
from vitdense.errors import UserError
from vitdense.metrics.change import ChangeMetric

CLASSES = ("unchanged", "changed")


def score(truth: Tensor, prediction: Tensor, classes: tuple[str, ...] = CLASSES, unchanged: int = 0) -> ChangeMetric:
    metric = ChangeMetric(classes, unchanged=unchanged)
    metric.update([prediction], {"masks": truth[None]})
    return metric


def of_matrix(rows: list[list[int]], classes: tuple[str, ...] = CLASSES) -> ChangeMetric:
    """Of a matrix of pixels by true and predicted class."""
    pairs = [(i, j) for i, row in enumerate(rows) for j, count in enumerate(row) for _ in range(count)]
    truth, prediction = torch.tensor(pairs).T[:, None]
    return score(truth.short(), prediction, classes)


def test_a_matrix_by_hand() -> None:
    found = of_matrix([[50, 10], [5, 15]]).compute()
    assert list(found) == ["F1", "precision", "recall", "IoU", "mIoU", "OA"]
    assert found["precision"] == pytest.approx(15 / 25)
    assert found["recall"] == pytest.approx(15 / 20)
    assert found["F1"] == pytest.approx(2 * 0.6 * 0.75 / (0.6 + 0.75))
    assert found["IoU"] == pytest.approx(15 / 30)
    assert found["mIoU"] == pytest.approx((50 / 65 + 15 / 30) / 2)
    assert found["OA"] == pytest.approx(65 / 80)


def test_it_equals_torchmetrics_over_several_batches() -> None:
    truth, prediction = torch.randint(-1, 2, (6, 9, 11), dtype=torch.int16), torch.randint(0, 2, (6, 9, 11))
    metric = ChangeMetric(CLASSES)
    for part in range(3):
        rows = slice(2 * part, 2 * part + 2)
        metric.update(list(prediction[rows].byte()), {"masks": truth[rows]})
    metric.reduce(lambda counts: counts)
    found = metric.compute()
    theirs = {
        "F1": binary_f1_score(prediction, truth, ignore_index=-1),
        "precision": binary_precision(prediction, truth, ignore_index=-1),
        "recall": binary_recall(prediction, truth, ignore_index=-1),
        "IoU": binary_jaccard_index(prediction, truth, ignore_index=-1),
    }
    for name, expected in theirs.items():
        assert found[name] == pytest.approx(expected.item(), abs=1e-6), name


def test_kinds_of_change_are_one_and_have_a_row_each() -> None:
    """Rows and columns: unchanged, built, felled."""
    metric = of_matrix([[40, 2, 3], [4, 10, 6], [1, 5, 9]], ("unchanged", "built", "felled"))
    found, details = metric.compute(), metric.details()
    shared, truth, changed = 30, 35, 35
    assert found["precision"] == pytest.approx(shared / changed)
    assert found["recall"] == pytest.approx(shared / truth)
    assert found["IoU"] == pytest.approx(30 / 40)
    assert found["OA"] == pytest.approx(59 / 80)
    assert details["classes"] == ["unchanged", "built", "felled"]
    assert details["precision"] == pytest.approx([40 / 45, 10 / 17, 9 / 18])
    assert details["recall"] == pytest.approx([40 / 45, 10 / 20, 9 / 15])
    assert details["F1"] == pytest.approx([40 / 45, 20 / 37, 18 / 33])
    assert details["IoU"] == pytest.approx([40 / 50, 10 / 27, 9 / 24])
    assert details["pixels"] == [45, 20, 15]


def test_what_is_nowhere_has_no_score() -> None:
    nothing = torch.zeros(4, 5, dtype=torch.int16)
    found = score(nothing, nothing.byte()).compute()
    assert all(math.isnan(found[name]) for name in ("F1", "precision", "recall", "IoU"))
    assert (found["mIoU"], found["OA"]) == (1.0, 1.0)


@pytest.mark.parametrize("swap", [False, True])
def test_what_is_only_true_or_only_found_scores_zero(swap: bool) -> None:
    nothing, everything = torch.zeros(4, 5, dtype=torch.int16), torch.ones(4, 5, dtype=torch.int16)
    truth, prediction = (everything, nothing) if swap else (nothing, everything)
    found = score(truth, prediction.byte()).compute()
    assert [found[name] for name in ("F1", "precision", "recall", "IoU")] == [0.0] * 4


def test_a_prediction_of_no_class_misses_what_changed() -> None:
    truth = torch.tensor([[0, 1, 1, 1]], dtype=torch.int16)
    found = score(truth, torch.tensor([[7, 1, 7, -1]])).compute()
    assert [found["precision"], found["recall"]] == pytest.approx([1, 1 / 3])


def test_another_class_may_be_the_unchanged_one() -> None:
    truth, prediction = torch.tensor([[1, 1, 0, 0]], dtype=torch.int16), torch.tensor([[1, 0, 0, 0]])
    found = score(truth, prediction, ("changed", "same"), unchanged=1).compute()
    assert [found["precision"], found["recall"]] == pytest.approx([2 / 3, 1])


@pytest.mark.parametrize(("classes", "unchanged"), [((), 0), (("one",), 0), (CLASSES, 2)])
def test_data_without_a_class_of_change_is_refused(classes: tuple[str, ...], unchanged: int) -> None:
    samples = cast(Samples, SimpleNamespace(classes=classes))
    with pytest.raises(UserError, match=f"classes of which {unchanged} .metric.unchanged. is no change"):
        METRICS.create("change", {"unchanged": unchanged}).build(samples)

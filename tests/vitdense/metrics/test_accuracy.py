"""Accuracy beside torchmetrics, and where torchmetrics leaves open what counts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from vitdense.contracts import IGNORE, METRICS, Batch
from vitdense.errors import UserError
from vitdense.metrics.accuracy import Accuracy, label_ranks

NAMES = tuple("abcdefghi")


def counted(logits: Tensor, labels: Tensor, names: tuple[str, ...] = NAMES, size: int = 7) -> Accuracy:
    """In batches of `size`, the last one smaller."""
    metric = Accuracy(names)
    for start in range(0, len(logits), size):
        metric.update(list(logits[start : start + size]), Batch(labels=labels[start : start + size]))
    return metric


def draw(count: int = 200) -> tuple[Tensor, Tensor]:
    """Logits that know a little of the labels; class 3 is absent."""
    labels = torch.randint(0, 8, (count,))
    labels = torch.where(labels >= 3, labels + 1, labels)
    return torch.randn(count, 9) + 1.5 * torch.nn.functional.one_hot(labels, 9), labels


def test_all_numbers_equal_torchmetrics() -> None:
    logits, labels = draw()
    metric = counted(logits, labels)
    found, by_class = metric.compute(), metric.details()
    for rank in (1, 5):
        theirs = MulticlassAccuracy(9, top_k=rank, average="micro")(logits, labels).item()
        each = MulticlassAccuracy(9, top_k=rank, average=None)(logits, labels)
        assert found[f"top{rank}"] == pytest.approx(theirs, abs=1e-6)
        present = torch.tensor(by_class["pictures"]) > 0
        torch.testing.assert_close(torch.tensor(by_class[f"top{rank}"])[present], each[present])
    assert 0.3 < found["top1"] < found["top5"] < 1
    assert found["mean_per_class"] == pytest.approx(torch.tensor(by_class["top1"]).nanmean().item(), abs=1e-6)
    assert by_class["pictures"] == torch.bincount(labels, minlength=9).tolist()
    assert math.isnan(by_class["top1"][3])
    assert next(iter(found)) == "top1"


def test_batches_and_processes_change_nothing() -> None:
    logits, labels = draw()
    whole, parts = counted(logits, labels, size=200), [counted(logits[i::2], labels[i::2], size=3) for i in range(2)]
    both = parts[0].counts + parts[1].counts
    parts[0].reduce(lambda counts: both)
    assert parts[0].compute() == whole.compute()


def test_unlabelled_pictures_count_nowhere() -> None:
    logits, labels = draw()
    keep = torch.rand(200) < 0.5
    found = counted(logits, torch.where(keep, labels, IGNORE))
    assert found.compute() == counted(logits[keep], labels[keep]).compute()


def test_few_classes_are_all_among_the_first_five() -> None:
    logits, labels = torch.randn(20, 3), torch.randint(0, 3, (20,))
    assert counted(logits, labels, ("a", "b", "c")).compute()["top5"] == 1


@pytest.mark.parametrize(
    ("row", "label", "rank"),
    [
        ([1.0, 1.0, 1.0], 0, 1),  # equal ones: the lower class first, as argmax has it
        ([1.0, 1.0, 1.0], 2, 3),
        ([0.0, 2.0, 1.0], 2, 2),
        ([math.nan, 5.0, 1.0], 1, 2),  # nothing is right by luck
        ([math.nan, math.nan, math.nan], 0, 3),
        ([0.0, math.nan, 1.0], 1, 3),
        ([-math.inf, 0.0, math.inf], 0, 3),
    ],
)
def test_the_rank_of_a_label(row: list[float], label: int, rank: int) -> None:
    logits, labels = torch.tensor([row]), torch.tensor([label])
    assert label_ranks(logits, labels).tolist() == [rank]
    assert (logits.argmax(1) == labels).item() == (rank == 1) or math.isnan(sum(row))


def test_no_pictures_are_no_number() -> None:
    metric = Accuracy(NAMES)
    metric.update([], Batch(labels=torch.zeros(0, dtype=torch.long)))
    assert all(math.isnan(value) for value in metric.compute().values())


@pytest.mark.parametrize(
    ("predictions", "batch", "message"),
    [
        ([torch.zeros(9)], Batch(), "needs data with a label for each picture"),
        ([torch.zeros(8)], Batch(labels=torch.tensor([1])), r"needs logits \(9,\) of each picture, given \(8,\)"),
        ([torch.zeros(9)], Batch(labels=torch.tensor([9])), r"needs 1 labels in 0\.\.8, or -1 for none, given \[9\]"),
        ([torch.zeros(9)], Batch(labels=torch.tensor([1, 2])), "needs 1 labels"),
    ],
)
def test_what_does_not_fit_is_told(predictions: list[Tensor], batch: Batch, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Accuracy(NAMES).update(predictions, batch)


def test_data_without_classes_is_refused() -> None:
    samples: Any = type("Samples", (), {"classes": ()})()
    with pytest.raises(UserError, match="needs a data set with classes"):
        METRICS.create("accuracy", {}).build(samples)

"""Mean IoU against torchmetrics and plain numpy, under any split, and at its edges."""

import math
from types import SimpleNamespace
from typing import Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from vitdense.contracts import METRICS, Samples
from vitdense.errors import UserError
from vitdense.metrics.segmentation import MeanIoU, count_pairs


def metric(num_classes: int, average: Literal["present", "all"] = "present") -> MeanIoU:
    return MeanIoU(tuple(f"class {index}" for index in range(num_classes)), average=average)


def score(
    truth: Tensor, prediction: Tensor, num_classes: int, average: Literal["present", "all"] = "present"
) -> MeanIoU:
    made = metric(num_classes, average)
    made.update([prediction], {"masks": truth[None]})
    return made


def random_case(seed: int) -> tuple[Tensor, Tensor, int]:
    """Masks with absent classes, ignored pixels, and now and then nothing at all."""
    generator = np.random.default_rng(seed)
    num_classes = int(generator.integers(1, 12))
    shape = tuple(generator.integers(0 if seed % 10 == 0 else 1, 9, size=2))
    held = generator.choice(num_classes, size=generator.integers(1, num_classes + 1))
    truth = generator.choice(held, size=shape)
    truth[generator.random(shape) < generator.choice([0.0, 0.3, 1.0])] = -1
    prediction = generator.integers(0, num_classes, size=shape)
    return torch.from_numpy(truth).to(torch.int16), torch.from_numpy(prediction).to(torch.uint8), num_classes


def by_hand(truth: Tensor, prediction: Tensor, num_classes: int) -> tuple[list[float], list[float], float]:
    """IoU and accuracy of each class, pixel accuracy: sets of pixels, no confusion matrix."""
    t, p = truth.numpy().ravel(), prediction.numpy().ravel()
    t, p = t[t != -1], p[t != -1]
    iou, accuracy = [], []
    for index in range(num_classes):
        both, either = ((t == index) & (p == index)).sum(), ((t == index) | (p == index)).sum()
        iou.append(both / either if either else math.nan)
        accuracy.append(both / (t == index).sum() if (t == index).any() else math.nan)
    return iou, accuracy, float((t == p).mean()) if len(t) else math.nan


def mean(values: list[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan


def test_equals_numpy_on_a_thousand_random_cases() -> None:
    for seed in range(1000):
        truth, prediction, num_classes = random_case(seed)
        made = score(truth, prediction, num_classes)
        iou, accuracy, pixels = by_hand(truth, prediction, num_classes)
        np.testing.assert_allclose(made.details()["IoU"], iou, rtol=0, atol=1e-12)
        np.testing.assert_allclose(made.details()["Acc"], accuracy, rtol=0, atol=1e-12)
        expected = [mean(iou), mean(accuracy), pixels]
        np.testing.assert_allclose(list(made.compute().values()), expected, rtol=0, atol=1e-12)


def test_counts_equal_those_of_torchmetrics() -> None:
    for seed in range(200):
        truth, prediction, num_classes = random_case(seed)
        if num_classes > 1 and truth.numel():
            expected = multiclass_confusion_matrix(prediction.long(), truth.long(), num_classes, ignore_index=-1)
            assert torch.equal(count_pairs(truth, prediction, num_classes)[:, :-1], expected)


@pytest.mark.parametrize("num_classes", [180, 181, 300])
def test_many_classes_are_counted_as_by_numpy(num_classes: int) -> None:
    """Beyond 180 a pair is no int16 any more; the pixels are more than are counted at a time."""
    truth = torch.randint(-1, num_classes, (3, 400, 333)).to(torch.int16)
    guess = torch.randint(-1, num_classes + 2, (3, 400, 333))
    known = np.where((guess < 0) | (guess >= num_classes), num_classes, guess)
    expected = np.zeros((num_classes, num_classes + 1), dtype=np.int64)
    labelled = truth.numpy() != -1
    np.add.at(expected, (truth.numpy()[labelled], known[labelled]), 1)
    np.testing.assert_array_equal(count_pairs(truth, guess, num_classes).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_predictions_of_any_integer_type_count_alike(dtype: torch.dtype) -> None:
    truth, guess = torch.randint(-1, 40, (50, 60)), torch.randint(0, 45, (50, 60))
    assert torch.equal(count_pairs(truth, guess.to(dtype), 40), count_pairs(truth, guess, 40))


def test_any_split_into_batches_and_processes_gives_the_same() -> None:
    truth, prediction = torch.randint(-1, 6, (12, 9, 7)), torch.randint(0, 6, (12, 9, 7))
    whole = metric(6)
    whole.update(list(prediction), {"masks": truth})
    for cuts in ([5], list(range(1, 12)), [0]):
        processes = []
        for masks, guesses in zip(truth.tensor_split(cuts), prediction.tensor_split(cuts), strict=True):
            process = metric(6)
            process.update(list(guesses), {"masks": masks})
            processes.append(process)
        total = torch.stack([process.counts for process in processes]).sum(dim=0)
        processes[0].reduce(lambda _, total=total: total)  # type: ignore[misc]
        assert processes[0].compute() == whole.compute()


def test_present_leaves_absent_classes_out_and_all_counts_them_as_nothing() -> None:
    truth = torch.tensor([[0, 0, 1, 1]])
    assert score(truth, truth, 4).compute() == {"mIoU": 1.0, "mAcc": 1.0, "aAcc": 1.0}
    assert score(truth, truth, 4, "all").compute() == {"mIoU": 0.5, "mAcc": 0.5, "aAcc": 1.0}


def test_a_class_that_is_only_predicted_counts() -> None:
    result = score(torch.tensor([[0, 0]]), torch.tensor([[0, 2]]), 4).compute()
    assert result == {"mIoU": 0.25, "mAcc": 0.5, "aAcc": 0.5}


@pytest.mark.parametrize("outside", [-1, 3, 200])
def test_a_prediction_that_is_no_class_is_wrong(outside: int) -> None:
    result = score(torch.tensor([[0, 0, 1, -1]]), torch.tensor([[0, outside, 1, outside]]), 3).compute()
    assert result == {"mIoU": 0.75, "mAcc": 0.75, "aAcc": pytest.approx(2 / 3)}


@pytest.mark.parametrize("average", ["present", "all"])
def test_without_a_labelled_pixel_there_is_no_result(average: Literal["present", "all"]) -> None:
    ignored = torch.full((2, 2), -1)
    assert all(math.isnan(value) for value in score(ignored, torch.zeros(2, 2), 3, average).compute().values())
    assert all(math.isnan(value) for value in metric(3, average).compute().values())


def test_a_mask_value_that_is_no_class_is_named() -> None:
    with pytest.raises(UserError, match=r"a mask holds class 7; allowed are 0..2, and -1 for no label"):
        score(torch.tensor([[0, 7]]), torch.tensor([[0, 1]]), 3)


def test_a_prediction_of_another_size_is_named_with_its_picture() -> None:
    with pytest.raises(UserError, match=r"street: the prediction is \(2, 3\) and the mask \(2, 2\)"):
        metric(3).update([torch.zeros(2, 3)], {"masks": torch.zeros(1, 2, 2), "ids": ["street"]})


def test_is_found_by_name_and_takes_its_classes_from_the_data() -> None:
    made = METRICS.create("miou", {"average": "all"}).build(cast(Samples, SimpleNamespace(classes=("sky", "road"))))
    made.update([torch.tensor([[0]])], {"masks": torch.tensor([[[0]]])})
    assert list(made.compute()) == ["mIoU", "mAcc", "aAcc"]
    assert made.details()["classes"] == ["sky", "road"]
    assert made.details()["pixels"] == [1, 0]

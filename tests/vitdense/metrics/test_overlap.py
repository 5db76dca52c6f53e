"""Dice and Boundary IoU against other ways to compute them; several metrics at once."""

import math
from types import SimpleNamespace
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from vitdense.contracts import IGNORE, METRICS, Metric, Samples
from vitdense.errors import UserError
from vitdense.metrics.overlap import BoundaryIoU, Dice, Overlap, boundary_region
from vitdense.metrics.segmentation import MeanIoU

NAMES = tuple("abcde")


def blobs(seed: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A mask of smooth areas with unlabelled pixels, and a prediction that is like it but shifted and noisy."""
    rng = np.random.default_rng(seed)
    fields = np.stack([cv2.GaussianBlur(rng.normal(size=size), (0, 0), 4) for _ in NAMES])
    truth = fields.argmax(0)
    guess = np.roll(truth, rng.integers(-3, 4, 2), (0, 1))
    guess[rng.random(size) < 0.01] = 4
    truth[: size[0] // 5, : size[1] // 3] = IGNORE
    return torch.from_numpy(truth), torch.from_numpy(guess)


def near_border(inside: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """The definition: pixels with one outside the class, or the picture, in the square around them."""
    height, width = inside.shape
    found = np.zeros_like(inside)
    for row, column in zip(*np.nonzero(inside), strict=True):
        rows = slice(max(row - distance, 0), row + distance + 1)
        columns = slice(max(column - distance, 0), column + distance + 1)
        at_rim = min(row, column, height - 1 - row, width - 1 - column) < distance
        found[row, column] = at_rim or not inside[rows, columns].all()
    return found


def authors_boundary(mask: NDArray[np.uint8], distance: int) -> NDArray[np.uint8]:
    """The procedure of the authors' code: erode a picture framed by one zero."""
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=distance)
    return np.asarray(mask - eroded[1:-1, 1:-1])


def counted(metric: Overlap, *cases: tuple[Tensor, Tensor]) -> Overlap:
    for truth, guess in cases:
        metric.update([guess], {"masks": truth[None]})
    return metric


@pytest.mark.parametrize("distance", [1, 2, 5, 60])
def test_boundary_regions_are_those_of_the_definition_and_of_the_authors(distance: int) -> None:
    truth, _ = blobs(0, (40, 53))
    for index in range(len(NAMES)):
        inside = (truth == index).numpy()
        region = boundary_region(torch.from_numpy(inside), distance).numpy()
        assert np.array_equal(region, near_border(inside, distance))
        assert np.array_equal(region, authors_boundary(inside.astype(np.uint8), distance).astype(bool))


@pytest.mark.parametrize("size", [(64, 96), (101, 77), (20, 24)])
def test_boundary_iou_equals_an_oracle(size: tuple[int, int]) -> None:
    cases = [blobs(seed, size) for seed in range(3)]
    distance = max(1, round(0.02 * math.hypot(*size)))
    both, either = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    for truth, guess in cases:
        known = np.where(truth.numpy() == IGNORE, IGNORE, guess.numpy())
        for index in range(len(NAMES)):
            one, other = (near_border(labels == index, distance) for labels in (truth.numpy(), known))
            both[index] += (one & other).sum()
            either[index] += (one | other).sum()
    made = counted(BoundaryIoU(NAMES), *cases)
    np.testing.assert_allclose(made.details()["BoundaryIoU"], both / either, rtol=0, atol=1e-12)
    assert made.compute()["mBoundaryIoU"] == pytest.approx((both / either).mean(), abs=1e-12)


def test_with_a_wide_boundary_it_is_the_iou() -> None:
    case = blobs(1, (40, 53))
    iou = MeanIoU(NAMES)
    iou.update([torch.where(case[0] == IGNORE, 0, case[1])], {"masks": case[0][None]})
    wide = counted(BoundaryIoU(NAMES, dilation_ratio=0.99), case)
    np.testing.assert_allclose(wide.details()["BoundaryIoU"], iou.details()["IoU"], rtol=0, atol=1e-12)


def test_dice_follows_from_the_iou() -> None:
    cases = [blobs(seed, (40, 53)) for seed in range(3)]
    iou = MeanIoU(NAMES)
    for truth, guess in cases:
        iou.update([guess], {"masks": truth[None]})
    expected = [2 * value / (1 + value) for value in iou.details()["IoU"]]
    made = counted(Dice(NAMES), *cases)
    np.testing.assert_allclose(made.details()["Dice"], expected, rtol=0, atol=1e-12)
    assert made.compute()["mDice"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("kind", [Dice, BoundaryIoU])
def test_absent_classes_have_no_score_and_perfect_ones_one(kind: type[Overlap]) -> None:
    truth = torch.tensor([[0, 0, 2], [0, 2, 2], [IGNORE, 2, 2]])
    made = counted(kind(NAMES), (truth, torch.where(truth == IGNORE, 1, truth)))
    assert made.compute() == {f"m{made.name}": 1.0}
    assert [math.isnan(value) for value in made.details()[made.name]] == [False, True, False, True, True]
    assert math.isnan(kind(NAMES).compute()[f"m{made.name}"])


@pytest.mark.parametrize("kind", [Dice, BoundaryIoU])
def test_a_prediction_that_is_no_class_is_wrong(kind: type[Overlap]) -> None:
    truth = torch.tensor([[0, 0], [1, 1]])
    made = counted(kind(NAMES), (truth, torch.tensor([[0, 99], [1, IGNORE]])))
    assert made.details()[made.name][:2] == pytest.approx([2 / 3] * 2 if kind is Dice else [0.5] * 2)


@pytest.mark.parametrize("kind", [Dice, BoundaryIoU])
def test_any_split_into_processes_gives_the_same(kind: type[Overlap]) -> None:
    cases = [blobs(seed, (40, 53)) for seed in range(4)]
    parts = [counted(kind(NAMES), case) for case in cases]
    total = torch.stack([part.counts for part in parts]).sum(dim=0)
    parts[0].reduce(lambda _: total)
    assert parts[0].compute() == counted(kind(NAMES), *cases).compute()


def build(name: str, **options: object) -> Metric:
    return METRICS.create(name, options).build(cast(Samples, SimpleNamespace(classes=NAMES)))


def test_several_metrics_see_the_same_predictions() -> None:
    made = build(
        "several", metrics=[{"name": "miou"}, {"name": "boundary_iou", "dilation_ratio": 0.1}, {"name": "dice"}]
    )
    truth, guess = blobs(0, (40, 53))
    made.update([guess], {"masks": truth[None]})
    made.reduce(lambda counts: counts)
    assert list(made.compute()) == ["mIoU", "mAcc", "aAcc", "mBoundaryIoU", "mDice"]
    assert list(made.details()) == ["classes", "IoU", "Acc", "pixels", "BoundaryIoU", "Dice"]
    assert made.compute()["mDice"] == counted(Dice(NAMES), (truth, guess)).compute()["mDice"]


@pytest.mark.parametrize(
    "metrics", [[], [{"name": "mio"}], [{"name": "miou", "avrage": "all"}], [{}], [{"name": "several", "metrics": []}]]
)
def test_a_fault_in_one_of_several_is_found_with_the_recipe(metrics: object) -> None:
    with pytest.raises(ValidationError):
        METRICS.create("several", {"metrics": metrics})


@pytest.mark.parametrize("name", ["dice", "boundary_iou", "miou"])
def test_data_without_classes_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="needs a data set with classes"):
        METRICS.create(name).build(cast(Samples, SimpleNamespace(classes=())))

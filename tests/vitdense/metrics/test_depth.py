"""Errors of depth: the formulas written out in numpy, alignment, crops, ranges, and sums that add up."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitdense.contracts import METRICS
from vitdense.data.images import read_depth
from vitdense.errors import UserError
from vitdense.metrics.depth import DepthError, DepthErrorConfig, aligned
from vitdense.regions import Crop, crop_region


def metric(**options: object) -> DepthError:
    return DepthErrorConfig.model_validate(options).build()


def by_hand(truth: NDArray[np.float64], guess: NDArray[np.float64]) -> dict[str, float]:
    """One picture's errors, pixel by pixel."""
    pairs = [(t, p) for t, p in zip(truth.ravel().tolist(), guess.ravel().tolist(), strict=True) if t > 0]
    count = len(pairs)
    logs = [math.log(p) - math.log(t) for t, p in pairs]
    mean = sum(logs) / count
    worst = [max(p / t, t / p) for t, p in pairs]
    return {
        "d1": sum(ratio < 1.25 for ratio in worst) / count,
        "d2": sum(ratio < 1.5625 for ratio in worst) / count,
        "d3": sum(ratio < 1.953125 for ratio in worst) / count,
        "abs_rel": sum(abs(p - t) / t for t, p in pairs) / count,
        "sq_rel": sum((p - t) ** 2 / t for t, p in pairs) / count,
        "rmse": math.sqrt(sum((p - t) ** 2 for t, p in pairs) / count),
        "rmse_log": math.sqrt(sum(log**2 for log in logs) / count),
        "log10": sum(abs(math.log10(p) - math.log10(t)) for t, p in pairs) / count,
        "silog_x100": 100 * math.sqrt(sum((log - mean) ** 2 for log in logs) / count),
    }


def case(count: int = 4, size: tuple[int, int] = (9, 11)) -> tuple[Tensor, Tensor]:
    """Truth with unknown pixels, and predictions around it."""
    truth = torch.rand(count, *size).double() * 9 + 0.5
    guess = truth * (0.4 * torch.randn(count, *size)).exp()
    truth[torch.rand(count, *size) < 0.2] = 0
    return truth, guess


def test_results_are_the_mean_over_pictures_of_what_numpy_says() -> None:
    truth, guess = case()
    made = metric()
    made.update(list(guess), {"depth": truth})
    expected = [by_hand(t.numpy(), p.numpy()) for t, p in zip(truth, guess, strict=True)]
    for name, value in made.compute().items():
        assert value == pytest.approx(np.mean([each[name] for each in expected]), abs=1e-12), name
    assert next(iter(made.compute())) == "d1"  # `best` follows the first, and takes the highest


def test_alignment_is_the_least_squares_fit_of_scale_and_shift() -> None:
    truth, guess = case(1)
    known = truth[0] > 0
    t, p = truth[0][known], guess[0][known]
    solution = np.linalg.lstsq(np.stack([p.numpy(), np.ones(len(p))], axis=1), t.numpy(), rcond=None)[0]
    np.testing.assert_allclose(aligned(p, t).numpy(), p.numpy() * solution[0] + solution[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(aligned(3 * p - 7, t), aligned(p, t), rtol=0, atol=1e-9)
    torch.testing.assert_close(aligned(torch.full_like(t, 2.0), t), t.mean().expand_as(t))


def test_a_prediction_off_by_scale_and_shift_is_perfect_once_aligned() -> None:
    truth, _ = case()
    made = metric(align=True)
    made.update(list(0.3 * truth + 2), {"depth": truth})
    result = made.compute()
    assert result["d1"] == 1
    assert result["rmse"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("bad", "counted_as"), [(0.0, 1e-3), (-5.0, 1e-3), (math.inf, 10.0)])
def test_predictions_are_clipped_to_the_range(bad: float, counted_as: float) -> None:
    truth = torch.full((1, 2, 2), 4.0)
    one, other = metric(max_depth=10), metric(max_depth=10)
    one.update([torch.tensor([[bad, 4], [4, 4]])], {"depth": truth})
    other.update([torch.tensor([[counted_as, 4], [4, 4]])], {"depth": truth})
    assert one.compute() == pytest.approx(other.compute())


def test_only_truth_inside_the_range_and_the_crop_counts() -> None:
    truth = torch.ones(1, 480, 640)
    truth[:, 45:471, 41:601] = 2
    truth[:, 100, 100], truth[:, 101, 100] = 0.5, 50.0
    made = metric(crop="eigen", min_depth=1, max_depth=10)
    guess = torch.full((480, 640), 2.0)
    made.update([guess], {"depth": truth})
    assert made.compute()["abs_rel"] == 0
    outside = metric()
    outside.update([guess], {"depth": truth})
    assert outside.compute()["abs_rel"] > 0.2


@pytest.mark.parametrize(
    ("crop", "size", "expected"),
    [
        ("none", (480, 640), (0, 480, 0, 640)),
        ("eigen", (480, 640), (45, 471, 41, 601)),
        ("eigen", (240, 320), (22, 235, 20, 300)),
        ("garg", (375, 1242), (153, 371, 44, 1197)),
        ("eigen_kitti", (375, 1242), (124, 342, 44, 1197)),
    ],
)
def test_crops_are_the_published_ones(crop: Crop, size: tuple[int, int], expected: tuple[int, ...]) -> None:
    rows, columns = crop_region(crop, size)
    assert (rows.start, rows.stop, columns.start, columns.stop) == expected


def test_pictures_without_a_valid_pixel_are_left_out() -> None:
    truth, guess = case(2)
    one, other = metric(), metric()
    one.update([guess[0]], {"depth": truth[:1]})
    other.update(list(guess), {"depth": torch.stack([truth[0], torch.zeros(9, 11)])})
    assert other.compute() == one.compute()
    assert other.pictures == 1
    assert all(math.isnan(value) for value in metric().compute().values())


def test_any_split_into_batches_and_processes_gives_the_same() -> None:
    truth, guess = case(12)
    whole = metric()
    whole.update(list(guess), {"depth": truth})
    for cuts in ([5], list(range(1, 12)), [0]):
        processes = []
        for maps, guesses in zip(truth.tensor_split(cuts), guess.tensor_split(cuts), strict=True):
            process = metric()
            process.update(list(guesses), {"depth": maps})
            processes.append(process)
        total = torch.stack([process.sums for process in processes]).sum(dim=0)
        processes[0].reduce(lambda _, total=total: total)  # type: ignore[misc]
        assert processes[0].compute() == pytest.approx(whole.compute(), rel=1e-13)


@pytest.mark.parametrize(("section", "align"), [("metric", False), ("lsq_scale_shift_in_depth", True)])
def test_equals_the_reference_on_real_depth(shared_data: Path, section: str, align: bool) -> None:
    folder = shared_data / "eval_reference" / "rgbd_7scenes"
    expected = json.loads((folder / "expected.json").read_text())[section]
    made = metric(align=align)
    for path in sorted((folder / "pred").iterdir()):
        truth = read_depth(shared_data / "rgbd_7scenes" / path.name.replace(".pred.", ".depth."), 1000)
        made.update([torch.from_numpy(read_depth(path, 1000))], {"depth": torch.from_numpy(truth)[None]})
    result = made.compute()
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-6), name


def test_a_prediction_of_another_size_is_named_with_its_picture() -> None:
    with pytest.raises(UserError, match=r"hall: the prediction is \(2, 3\) and the depth \(2, 2\)"):
        metric().update([torch.zeros(2, 3)], {"depth": torch.zeros(1, 2, 2), "ids": ["hall"]})


def test_data_without_depth_is_told_what_to_take() -> None:
    made = METRICS.create("depth")
    assert isinstance(made, DepthErrorConfig)
    with pytest.raises(UserError, match="needs a data set with depth"):
        made.build().update([torch.zeros(2, 2)], {"masks": torch.zeros(1, 2, 2)})

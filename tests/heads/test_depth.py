"""What depth heads share: losses against formulas written with loops in numpy, predictions in metres at any size."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from heads.depth import DepthConfig, DepthHead
from vitdense.contracts import Batch, Level, Outputs
from vitdense.errors import UserError

LEVELS = (Level(8, 4),)


class Toy(DepthHead):
    """Gives its own parameter as depth."""

    def __init__(self, config: DepthConfig, depth: Tensor) -> None:
        super().__init__(config, LEVELS)
        self.depth = torch.nn.Parameter(depth)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """The parameter."""
        return {"depth": self.depth}


def toy(depth: Tensor, **options: object) -> Toy:
    return Toy(DepthConfig.model_validate(options), depth)


def target(height: int, width: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Depth with holes, and with values outside the range."""
    generator = torch.Generator().manual_seed(1)
    depth = torch.rand(2, height, width, generator=generator, dtype=dtype) * 12 + 0.1
    depth[torch.rand(2, height, width, generator=generator) < 0.3] = 0
    return depth


def by_hand(predicted: np.ndarray, depth: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """SILog and gradient matching, pixel by pixel."""
    known = {
        (b, y, x): math.log(predicted[b, y, x] + 1e-3) - math.log(depth[b, y, x] + 1e-3)
        for b, y, x in np.ndindex(*depth.shape)
        if depth[b, y, x] > 0 and low <= depth[b, y, x] <= high
    }
    values = list(known.values())
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    gradient = 0.0
    for step in (1, 2, 4, 8):
        kept = {key: value for key, value in known.items() if key[1] % step == 0 and key[2] % step == 0}
        pairs = [
            abs(kept[(b, y, x)] - kept[other])
            for b, y, x in kept
            for other in ((b, y + step, x), (b, y, x + step))
            if other in kept
        ]
        gradient += sum(pairs) / len(kept)
    return math.sqrt(variance + 0.15 * mean**2), gradient


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_losses_equal_the_formulas(dtype: torch.dtype, bound: float) -> None:
    depth = target(25, 33, dtype=dtype)
    predicted = torch.rand(2, 1, 25, 33, dtype=dtype) * 8 + 0.5
    head = toy(predicted, max_depth=10.0, losses={"silog": 2.0, "gradient": 0.25})
    losses = head.losses(head([], {}), {"depth": depth})
    silog, gradient = by_hand(predicted[:, 0].double().numpy(), depth.double().numpy(), 1e-3, 10.0)
    assert set(losses) == {"loss_silog", "loss_gradient"}
    assert abs(float(losses["loss_silog"]) - 2.0 * silog) < bound
    assert abs(float(losses["loss_gradient"]) - 0.25 * gradient) < bound


def test_maps_are_resized_to_the_target_first() -> None:
    depth = target(25, 33)
    coarse = torch.rand(2, 1, 7, 9) * 8 + 0.5
    fine = torch.nn.functional.interpolate(coarse, size=(25, 33), mode="bilinear")
    ours, expected = toy(coarse), toy(fine)
    for name, value in ours.losses(ours([], {}), {"depth": depth}).items():
        torch.testing.assert_close(value, expected.losses(expected([], {}), {"depth": depth})[name], rtol=0, atol=0)


def test_a_scale_costs_little_and_a_wrong_shape_more() -> None:
    depth = target(40, 40).clamp(0, 9)
    scaled, shuffled = toy((depth * 1.5)[:, None].clamp_min(0.1)), toy(depth.flip(-1)[:, None].clamp_min(0.1))
    for name in ("loss_silog", "loss_gradient"):
        assert (
            scaled.losses(scaled([], {}), {"depth": depth})[name]
            < 0.3 * shuffled.losses(shuffled([], {}), {"depth": depth})[name]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["nothing known", "one pixel", "exact", "all too far", "not a number"])
def test_losses_are_finite_and_reach_every_parameter(kind: str, dtype: torch.dtype) -> None:
    depth = torch.zeros(2, 20, 30)
    predicted = torch.rand(2, 1, 20, 30).to(dtype)
    predicted[..., :5] = 0
    if kind == "one pixel":
        depth[0, 3, 4] = 2.0
    elif kind == "exact":
        depth = predicted[:, 0].float().clone()
    elif kind == "all too far":
        depth = torch.full((2, 20, 30), 1e4)
    elif kind == "not a number":
        depth[:, :10] = math.nan
        depth[:, 10:] = 3.0
    head = toy(predicted)
    losses = head.losses(head([], {}), {"depth": depth})
    total = torch.stack(list(losses.values())).sum()
    assert total.dtype == torch.float32
    assert total.isfinite()
    if kind in ("nothing known", "all too far", "exact"):
        assert total == 0
    total.backward()  # type: ignore[no-untyped-call]
    assert head.depth.grad is not None
    assert head.depth.grad.isfinite().all()


def test_losses_without_a_weight_are_not_made() -> None:
    head = toy(torch.ones(1, 1, 8, 8), losses={"silog": 1.0})
    assert list(head.losses(head([], {}), {"depth": torch.ones(1, 8, 8)})) == ["loss_silog"]


def test_predictions_are_metres_in_range_at_each_size() -> None:
    depth = torch.tensor([[0.0, 5.0], [5.0, 40.0]]).expand(2, 1, 2, 2).to(torch.bfloat16)
    head = toy(depth.clone(), min_depth=0.5, max_depth=20.0)
    first, second = head.predict(head([], {}), {"sizes": [(4, 4), (7, 3)]})
    assert (first.shape, second.shape) == ((4, 4), (7, 3))
    assert first.dtype == torch.float32
    assert first.min() == 0.5
    assert first.max() == 20.0
    expected = torch.nn.functional.interpolate(depth[:1].float(), size=(7, 3), mode="bilinear")[0, 0]
    torch.testing.assert_close(second, expected.detach().clamp(0.5, 20.0))


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_depth 10.0 must be below max_depth 5.0"):
        DepthConfig(min_depth=10.0, max_depth=5.0)


def test_depth_of_another_size_or_kind_is_refused() -> None:
    head = toy(torch.ones(2, 1, 8, 8))
    with pytest.raises(
        UserError, match=r"depth must be \(B, H, W\) = \(2, 8, 8\) as the pictures are, got \(2, 9, 8\)"
    ):
        head.losses(head([], {}), {"depth": torch.ones(2, 9, 8), "images": torch.ones(2, 3, 8, 8)})
    with pytest.raises(UserError, match=r"floats in metres with 0 where unknown, got torch.int32"):
        head.losses(head([], {}), {"depth": torch.ones(2, 8, 8, dtype=torch.int32)})

"""What counts as the same: 1e-5 in float32; in bf16 no farther from float32 than twice the peer."""

import math

import pytest
import torch
from torch import Tensor

from vitdense.benchmarking.numerics import ROUNDING, compare, distance, spread


def test_distances_are_relative_to_the_reference() -> None:
    reference = torch.tensor([0.0, -200.0])
    assert distance(torch.tensor([1.0, -200.0]), reference) == 0.005
    assert spread(torch.tensor([1.0, -200.0]), reference) == 0.005


@pytest.mark.parametrize("measured", [distance, spread])
def test_other_shapes_and_a_reference_of_zeros_are_infinitely_far(measured: object) -> None:
    assert callable(measured)
    assert measured(torch.ones(2), torch.ones(2, 1)) == math.inf
    assert measured(torch.ones(2), torch.zeros(2)) == math.inf
    assert measured(torch.zeros(2), torch.zeros(2)) == 0


@pytest.mark.parametrize(("apart", "agrees"), [(0.0, True), (9e-6, True), (1.1e-5, False), (math.nan, False)])
def test_float32_agrees_to_1e_5(apart: float, agrees: bool) -> None:
    ours, theirs = {"map": torch.tensor([1.0, 0.5 + apart])}, {"map": torch.tensor([1.0, 0.5])}
    assert compare(ours, theirs).agrees == agrees


def test_the_worst_tensor_is_named() -> None:
    theirs = {name: torch.ones(3) for name in "abc"}
    ours = {"a": torch.ones(3), "b": torch.ones(3) + 1e-3, "c": torch.ones(3) + 1e-4}
    check = compare(ours, theirs)
    assert check.tensor == "b"
    assert check.distance == pytest.approx(1e-3, rel=1e-3)


def test_a_tensor_that_one_of_them_lacks_is_a_difference() -> None:
    some = {"loss": torch.ones(1)}
    both = {**some, "gradient": torch.ones(1)}
    assert compare(some, both).tensor == "gradient of theirs alone"
    assert compare(both, some).tensor == "gradient of ours alone"
    assert not compare(both, some).agrees


def test_bf16_may_stray_from_float32_twice_as_far_as_the_peer() -> None:
    def strayed(by: float) -> dict[str, Tensor]:
        return {"map": torch.full((8,), 1 + by)}

    exact = strayed(0)
    assert compare(strayed(0.038), strayed(0.02), exact).agrees
    assert compare(strayed(-0.038), strayed(0.02), exact).agrees
    assert not compare(strayed(0.042), strayed(0.02), exact).agrees
    assert compare(strayed(ROUNDING / 2), strayed(0), exact).agrees
    assert not compare(strayed(ROUNDING * 2), strayed(0), exact).agrees

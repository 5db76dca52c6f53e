"""What every loss must stand: nothing to learn from, absent classes, half precision, huge logits, one class."""

from typing import Any

import pytest
import torch
from torch import Tensor

from heads import create_head
from heads.losses import LOSSES
from vitdense.contracts import Batch, Level

NAMES = LOSSES.names()
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ROOTS = {"tversky": {"gamma": 0.5}, "focal": {"gamma": 0.5}}


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


def test_all_losses_of_the_page_are_there() -> None:
    expected = ["boundary", "cross_entropy", "dice", "focal", "lovasz", "ohem_cross_entropy", "tversky"]
    assert expected == NAMES


def test_no_two_are_logged_under_one_key() -> None:
    assert len({LOSSES.find(name)[0].key for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 60000.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_labels_costs_nothing_and_stays_connected(
    name: str, scale: float, dtype: torch.dtype, loss: Any
) -> None:
    logits = torch.randn(2, 5, 6, 8).clamp(-1, 1).mul(scale).to(dtype).requires_grad_()
    value = loss(name, logits, torch.full((2, 22, 30), -1), **ROOTS.get(name, {}))
    assert value.item() == 0
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert gradient(value, logits).count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 100.0, 60000.0])
@pytest.mark.parametrize("labels", ["ordinary", "one_class", "one_pixel", "one_picture"])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_finite(name: str, labels: str, scale: float, dtype: torch.dtype, loss: Any) -> None:
    logits = torch.randn(2, 5, 6, 8).clamp(-1, 1).mul(scale).to(dtype).requires_grad_()
    masks = {
        "ordinary": torch.randint(-1, 5, (2, 22, 30)),
        "one_class": torch.full((2, 22, 30), 2),
        "one_pixel": torch.full((2, 22, 30), -1).index_fill(2, torch.tensor([7]), 3),
        "one_picture": torch.stack([torch.randint(0, 2, (22, 30)), torch.full((22, 30), -1)]),
    }[labels]
    value = loss(name, logits, masks, **ROOTS.get(name, {}))
    assert value.isfinite()
    assert value >= 0
    assert gradient(value, logits).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_perfect_logits_cost_next_to_nothing_and_wrong_ones_more(name: str, loss: Any) -> None:
    masks = torch.zeros(2, 24, 32, dtype=torch.long)
    masks[:, 8:, 4:20] = 1
    masks[:, 16:, 20:] = 2
    right = 40 * torch.nn.functional.one_hot(masks, 3).movedim(-1, 1).float() - 20
    for options in ({}, ROOTS.get(name, {})):
        logits = right.clone().requires_grad_()
        value = loss(name, logits, masks, **options)
        assert value < 1e-3
        assert gradient(value, logits).isfinite().all()
        assert loss(name, right.flip(1), masks, **options) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_differences(name: str, loss: Any) -> None:
    masks = torch.randint(-1, 3, (2, 7, 9))
    logits = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    options = {"min_kept": 20} if name == "ohem_cross_entropy" else {}
    assert torch.autograd.gradcheck(lambda given: loss(name, given, masks, **options), (logits,))


@pytest.mark.parametrize("name", NAMES)
def test_one_class_is_defined(name: str, loss: Any) -> None:
    logits = torch.randn(2, 1, 6, 8, requires_grad=True)
    value = loss(name, logits, torch.randint(-1, 1, (2, 22, 30)))
    assert value.isfinite()
    assert gradient(value, logits).isfinite().all()


def test_all_together_compile_into_one_graph() -> None:
    head = create_head("linear", (Level(6, 4),), num_classes=5, losses=dict.fromkeys(NAMES, 1.0))
    logits = torch.randn(2, 5, 6, 8, requires_grad=True)
    batch: Batch = {"images": torch.zeros(2, 3, 22, 30), "masks": torch.randint(-1, 5, (2, 22, 30))}
    compiled = torch.compile(head.losses, fullgraph=True, backend="aot_eager")
    ours, expected = compiled({"logits": logits}, batch), head.losses({"logits": logits}, batch)
    assert ours.keys() == expected.keys()

    def grown(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    for key, value in ours.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grown(value), grown(expected[key]), rtol=1e-5, atol=1e-6)

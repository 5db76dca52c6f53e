"""Deformable sampling by a kernel against torch's own way."""

import pytest
import torch
from torch import Tensor

from vitdense.ops import deformable as module
from vitdense.ops.deformable import deformable_attention

SHAPES = ((5, 7), (1, 2))


def inputs(device: str, *, queries: int = 18, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    values = torch.randn(batch, sum(height * width for height, width in SHAPES), 2, 6)
    # Also well beyond the edges, where nothing is to be read.
    locations = torch.rand(batch, queries, 2, 2, 2, 2) * 1.6 - 0.3
    locations[0, 0, 0, 0] = -1e30
    return values.to(device), locations.to(device), torch.randn(batch, queries, 2, 2, 2, device=device)


# Half of a unit in the last place; a whole one for bfloat16, which the interpreter cuts off where GPUs round.
@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.float32, 1e-5), (torch.float16, 2**-11), (torch.bfloat16, 2**-7)], ids=str
)
def test_equals_torch(dtype: torch.dtype, unit: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, locations, weights = inputs(device, queries=18 if dtype == torch.float32 else 3)
    values = values.to(dtype)
    expected = module._read_bags(values.float(), SHAPES, locations, weights)
    monkeypatch.delattr(module, "_read_bags")
    ours = deformable_attention(values, SHAPES, locations, weights)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), expected, rtol=unit, atol=1e-5)


def test_any_layout(device: str) -> None:
    values, locations, weights = inputs(device, queries=3)
    expected = deformable_attention(values, SHAPES, locations, weights)
    turned = values.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    ours = deformable_attention(turned, list(SHAPES), locations.mT.contiguous().mT, weights.mT.contiguous().mT)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(("dtype", "unit", "queries"), [(torch.float32, 1e-5, 17), (torch.float16, 2**-11, 2)], ids=str)
def test_gradients_equal_torchs(
    dtype: torch.dtype, unit: float, queries: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, locations, weights = inputs(device, queries=queries)
    leaves = tuple(each.requires_grad_() for each in (values.to(dtype), locations, weights.to(dtype)))
    exact = tuple(each.detach().float().requires_grad_() for each in leaves)
    towards = torch.randn(2, queries, 12, device=device).to(dtype)
    expected = torch.autograd.grad(module._read_bags(exact[0], SHAPES, *exact[1:]), exact, towards.float())
    monkeypatch.delattr(module, "_read_bags")
    ours = torch.autograd.grad(deformable_attention(leaves[0], SHAPES, *leaves[1:]), leaves, towards)
    for own, other, leaf in zip(ours, expected, leaves, strict=True):
        assert own.dtype == leaf.dtype
        torch.testing.assert_close(own.float(), other, rtol=0, atol=unit * other.abs().max().item())


def test_frozen_values_get_no_gradient_and_the_others_theirs(device: str) -> None:
    values, locations, weights = inputs(device, queries=3, batch=1)
    read = deformable_attention(values, SHAPES, locations, weights.requires_grad_())
    expected = torch.autograd.grad(module._read_bags(values, SHAPES, locations, weights).sum(), weights)[0]
    torch.testing.assert_close(torch.autograd.grad(read.sum(), weights)[0], expected, rtol=1e-5, atol=1e-5)

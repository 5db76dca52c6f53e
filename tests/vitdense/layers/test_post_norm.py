"""The lean ways through layers with norms after the sums: the plain ones' outputs and gradients, in every precision."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitdense.layers.post_norm import linear_of_sum, normed_sum_with_mlp

TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


def modules(dtype: torch.dtype) -> tuple[nn.Linear, nn.Linear, nn.LayerNorm]:
    torch.manual_seed(0)
    fc1, fc2, norm = nn.Linear(8, 20), nn.Linear(20, 8), nn.LayerNorm(8)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias)
    return fc1.to(dtype), fc2.to(dtype), norm.to(dtype)


def compare(lean: Any, plain: Any, leaves: list[Tensor], tolerance: float) -> None:
    torch.testing.assert_close(lean, plain, atol=tolerance, rtol=0)
    towards = torch.randn(plain.shape, dtype=plain.dtype)
    for own, other in zip(
        torch.autograd.grad(lean, leaves, towards), torch.autograd.grad(plain, leaves, towards), strict=True
    ):
        assert other.abs().max() > 0.01
        torch.testing.assert_close(own, other, atol=tolerance * max(1.0, float(other.abs().max())), rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_the_sum_with_an_mlp_equals_the_plain_one(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fc1, fc2, norm = modules(dtype)
    tokens = torch.randn(2, 50, 8, dtype=dtype, requires_grad=True)
    leaves = [tokens, *fc1.parameters(), *fc2.parameters(), *norm.parameters()]
    plain = norm(tokens + fc2(fc1(tokens).relu()))
    compare(normed_sum_with_mlp(tokens, fc1, fc2, norm), plain, leaves, tolerance)
    monkeypatch.setattr("vitdense.layers.eager.piece_rows", lambda *_, **__: 30)
    plain = norm(tokens + fc2(fc1(tokens).relu()))
    compare(normed_sum_with_mlp(tokens, fc1, fc2, norm), plain, leaves, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("batch", [1, 2])
def test_layers_of_a_sum_equal_the_plain_ones(dtype: torch.dtype, tolerance: float, batch: int) -> None:
    fc1, other = modules(dtype)[0], nn.Linear(8, 3).to(dtype)
    tokens = torch.randn(2, 50, 8, dtype=dtype, requires_grad=True)
    positions = torch.randn(batch, 50, 8, dtype=dtype, requires_grad=True)
    plain = torch.cat([layer(tokens + positions) for layer in (fc1, other)], dim=-1)
    lean = torch.cat(linear_of_sum(tokens, positions, (fc1, other)), dim=-1)
    compare(lean, plain, [tokens, positions, *fc1.parameters(), *other.parameters()], tolerance)


def test_frozen_parts_get_no_gradient_and_the_others_theirs() -> None:
    fc1, fc2, norm = modules(torch.float64)
    fc1.requires_grad_(False)
    norm.requires_grad_(False)
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    wanted = torch.autograd.grad(norm(tokens + fc2(fc1(tokens).relu())).square().sum(), fc2.weight)
    found = torch.autograd.grad(normed_sum_with_mlp(tokens, fc1, fc2, norm).square().sum(), fc2.weight)
    torch.testing.assert_close(found, wanted)


def test_autocast_and_hooks_are_heeded() -> None:
    fc1, fc2, norm = modules(torch.float32)
    tokens, positions = torch.randn(2, 5, 8), torch.randn(1, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        half = normed_sum_with_mlp(tokens, fc1, fc2, norm)
        (layer,) = linear_of_sum(tokens, positions, (fc1,))
    exact = norm(tokens + fc2(fc1(tokens).relu()))
    assert layer.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=0)
    calls = []
    fc1.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(normed_sum_with_mlp(tokens, fc1, fc2, norm), exact)
    linear_of_sum(tokens, positions, (fc1,))
    assert len(calls) == 2

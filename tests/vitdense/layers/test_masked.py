"""Attention under a bias equals its formula, on the kernels that get it right."""

import pytest
import torch
from torch import Tensor

from vitdense.layers.masked import masked_attention


def by_formula(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    return (q @ k.mT * scale + bias).softmax(-1) @ v


@pytest.mark.parametrize("shape", [(1, 2, 5, 5), (3, 2, 5, 5), (1, 1, 5, 5)])
def test_bias_is_added_to_the_logits(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 3, 2, 5, 4, dtype=torch.float64)
    bias = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(masked_attention(q, k, v, bias), by_formula(q, k, v, bias, 0.5))
    torch.testing.assert_close(masked_attention(q, k, v, bias, scale=1.0), by_formula(q, k, v, bias, 1.0))


def test_a_bias_in_float32_serves_halves() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 3, 2, 5, 4)
    bias = torch.randn(1, 2, 5, 5)
    halves = masked_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias)
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.float(), by_formula(q, k, v, bias, 0.5), atol=0.05, rtol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("length", [49, 64, 144, 192])
def test_kernels_of_cuda_give_true_gradients_under_harsh_masks(length: int) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(4, 2, length, 32, device="cuda", dtype=torch.float64) for _ in range(3)]
    mask = torch.where(torch.rand(1, 2, length, length, device="cuda") < 0.5, -100.0, 0.0).double()
    results = []
    for kind in (torch.float64, torch.bfloat16):
        inputs = [each.to(kind).requires_grad_() for each in (*exact, mask)]
        out = masked_attention(*inputs)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for half, true in zip(results[1], results[0], strict=True):
        assert float((half.double() - true).norm() / true.norm()) < 0.02

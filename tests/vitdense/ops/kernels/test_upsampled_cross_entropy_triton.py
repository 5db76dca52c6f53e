"""The loss by kernels against torch's interpolation and cross entropy."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.ops import upsampled_cross_entropy as module
from vitdense.ops.upsampled_cross_entropy import upsampled_cross_entropy

CASES = [
    ((1, 17, 3, 2), (7, 5), False),
    ((2, 3, 2, 3), (5, 7), True),
    ((1, 18, 9, 7), (4, 3), False),
    ((1, 3, 8, 7), (4, 3), True),
    ((1, 3, 1, 3), (5, 9), False),
    ((1, 3, 3, 3), (1, 6), True),
    ((2, 3, 3, 4), (3, 4), False),
]


def case(shape: tuple[int, int, int, int], size: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    logits = (4 * torch.randn(shape)).to(device).requires_grad_()
    masks = torch.randint(-1, shape[1], (shape[0], *size)).to(device)
    masks[0, 0, 0] = shape[1] - 1
    return logits, masks


def naive(logits: Tensor, masks: Tensor, *, align_corners: bool = False, **options: Any) -> Tensor:
    size = (masks.shape[-2], masks.shape[-1])
    resized = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(resized, masks, ignore_index=-1, **options)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize(("shape", "size", "align_corners"), CASES)
def test_equals_torch_at_any_ratio(
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    align_corners: bool,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, masks = case(shape, size, device)
    theirs = naive(logits, masks, align_corners=align_corners)
    expected = gradient(theirs, logits)
    monkeypatch.delattr(F, "interpolate")
    monkeypatch.delattr(module, "_walk_by_strips")
    ours = upsampled_cross_entropy(logits, masks, align_corners=align_corners)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(ours, logits), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.15])
def test_equals_torch_with_class_weights_and_label_smoothing(label_smoothing: float, device: str) -> None:
    logits, masks = case((1, 5, 3, 2), (8, 7), device)
    weights = torch.rand(5, device=device) + 0.1
    ours = upsampled_cross_entropy(logits, masks, weights=weights, label_smoothing=label_smoothing)
    theirs = naive(logits, masks, weight=weights, label_smoothing=label_smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    expected = gradient(theirs, logits)
    torch.testing.assert_close(gradient(ours, logits), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_rows_wider_than_a_program_and_any_layout(device: str) -> None:
    plain, masks = case((2, 3, 2, 67), (2, 140), device)
    logits = plain.detach().to(memory_format=torch.channels_last).requires_grad_()
    ours, theirs = upsampled_cross_entropy(logits, masks.to(torch.int16)), naive(plain, masks)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    expected = gradient(theirs, plain)
    torch.testing.assert_close(gradient(ours, logits), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_very_wrong_pixels_keep_their_digits(device: str) -> None:
    logits, masks = case((1, 11, 3, 4), (7, 9), device)
    huge = (logits.detach() * 1e4).requires_grad_()
    ours, theirs = upsampled_cross_entropy(huge, masks), naive(huge, masks)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient(ours, huge), gradient(theirs, huge), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, device: str) -> None:
    given, masks = case((1, 5, 2, 3), (5, 6), device)
    logits = given.detach().to(dtype).requires_grad_()
    exact = logits.detach().float().requires_grad_()
    ours, theirs = upsampled_cross_entropy(logits, masks), naive(exact, masks)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(ours, logits).float(), gradient(theirs, exact), rtol=2**-7, atol=1e-5)


def test_without_labels_it_is_nothing_and_connected(device: str) -> None:
    logits = torch.full((1, 5, 3, 4), 60000.0, dtype=torch.float16, device=device, requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.full((1, 7, 8), -1, device=device), label_smoothing=0.1)
    assert loss.item() == 0
    assert gradient(loss, logits).count_nonzero() == 0


def test_a_label_that_is_no_class_makes_it_no_number(device: str) -> None:
    logits, masks = case((1, 5, 3, 4), (5, 6), device)
    masks[0, 0, 0] = 5
    assert upsampled_cross_entropy(logits, masks).isnan()

"""The strip-wise loss against torch's interpolation and cross entropy: values, gradients, all ways of calling it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.ops import upsampled_cross_entropy as module
from vitdense.ops.upsampled_cross_entropy import upsampled_cross_entropy

BOUNDS = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
SIZES = [((63, 84), (250, 333)), ((16, 24), (64, 96)), ((9, 7), (9, 30)), ((20, 19), (7, 6)), ((5, 4), (5, 4))]
EDGES = [((1, 1), (9, 8)), ((1, 6), (1, 24)), ((8, 8), (1, 1))]


def case(cells: tuple[int, int], size: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    logits = (4 * torch.randn(2, 11, *cells, dtype=dtype)).requires_grad_()
    masks = torch.randint(-1, 11, (2, *size))
    masks[0, 0, 0] = 3
    return logits, masks


def naive(logits: Tensor, masks: Tensor, *, align_corners: bool = False, **options: Any) -> Tensor:
    size = (masks.shape[-2], masks.shape[-1])
    resized = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(resized, masks, ignore_index=-1, **options)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


@pytest.fixture
def short_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.VALUES, "cpu", 2**11)


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("cells", "size"), SIZES + EDGES)
@pytest.mark.usefixtures("short_strips")
def test_equals_torch_at_any_ratio(
    cells: tuple[int, int], size: tuple[int, int], align_corners: bool, dtype: torch.dtype, bound: float
) -> None:
    logits, masks = case(cells, size, dtype)
    ours = upsampled_cross_entropy(logits, masks, align_corners=align_corners)
    theirs = naive(logits, masks, align_corners=align_corners)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
    expected = gradient(theirs, logits)
    torch.testing.assert_close(gradient(ours, logits), expected, rtol=0, atol=bound * expected.abs().max().item())


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.15])
@pytest.mark.usefixtures("short_strips")
def test_equals_torch_with_class_weights_and_label_smoothing(
    weighted: bool, label_smoothing: float, dtype: torch.dtype, bound: float
) -> None:
    logits, masks = case((13, 9), (50, 33), dtype)
    weights = torch.rand(11) + 0.1 if weighted else None
    ours = upsampled_cross_entropy(logits, masks, weights=weights, label_smoothing=label_smoothing)
    same = None if weights is None else weights.to(dtype)
    theirs = naive(logits, masks, weight=same, label_smoothing=label_smoothing)
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
    expected = gradient(theirs, logits)
    torch.testing.assert_close(gradient(ours, logits), expected, rtol=0, atol=bound * expected.abs().max().item())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradients_are_the_differences(label_smoothing: float) -> None:
    masks = torch.randint(-1, 3, (2, 9, 10))
    logits = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.5, 1.0, 2.0])

    def loss(given: Tensor) -> Tensor:
        return upsampled_cross_entropy(given, masks, weights=weights, label_smoothing=label_smoothing)

    assert torch.autograd.gradcheck(loss, (logits,))
    assert torch.autograd.gradgradcheck(loss, (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    given, masks = case((6, 8), (22, 30), torch.float32)
    logits = given.detach().to(dtype).requires_grad_()
    ours = upsampled_cross_entropy(logits, masks)
    exact = logits.detach().float().requires_grad_()
    theirs = naive(exact, masks)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    scale = 2.0**14  # as a gradient scaler has it: what would vanish in half precision must not
    mine = gradient(ours * scale, logits)
    assert mine.dtype == dtype
    torch.testing.assert_close(mine.float(), gradient(theirs * scale, exact), rtol=2**-7, atol=1e-4)


def test_very_wrong_pixels_keep_their_digits() -> None:
    logits, masks = case((6, 8), (22, 30), torch.float32)
    huge = (logits.detach() * 1e4).requires_grad_()
    ours, theirs = upsampled_cross_entropy(huge, masks), naive(huge, masks)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient(ours, huge), gradient(theirs, huge), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weights": torch.rand(11)}])
def test_without_labels_it_is_nothing_and_connected(dtype: torch.dtype, options: dict[str, Any]) -> None:
    logits = torch.full((2, 11, 6, 8), 60000.0, dtype=dtype, requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.full((2, 22, 30), -1), **options)
    assert loss.item() == 0
    assert gradient(loss, logits).count_nonzero() == 0


def test_a_second_backward_pass_gives_the_same() -> None:
    logits, masks = case((6, 8), (22, 30))
    loss = upsampled_cross_entropy(logits, masks)
    first = torch.autograd.grad(3 * loss, logits, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(3 * loss, logits)[0])


def test_strips_don_t_show(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, masks = case((13, 9), (50, 33))
    whole = upsampled_cross_entropy(logits, masks)
    expected = gradient(whole, logits)
    monkeypatch.setitem(module.VALUES, "cpu", 1)
    single = upsampled_cross_entropy(logits, masks)
    torch.testing.assert_close(single, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(single, logits), expected, rtol=1e-9, atol=1e-12)


def test_logits_are_never_interpolated_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(F, "interpolate")
    logits, masks = case((6, 8), (22, 30))
    assert gradient(upsampled_cross_entropy(logits, masks), logits).any()


def test_it_trains_after_inference_mode() -> None:
    logits, masks = case((7, 8), (23, 31))
    with torch.inference_mode():
        before = upsampled_cross_entropy(logits, masks)
    loss = upsampled_cross_entropy(logits, masks)
    loss.backward()  # type: ignore[no-untyped-call]
    assert before.item() == loss.item()


def test_autocast_changes_nothing() -> None:
    logits, masks = case((6, 8), (22, 30), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = upsampled_cross_entropy(logits, masks, label_smoothing=0.1)
    assert torch.equal(inside, upsampled_cross_entropy(logits, masks, label_smoothing=0.1))


def test_any_memory_format_and_mask_type() -> None:
    logits, masks = case((6, 8), (22, 30))
    expected = upsampled_cross_entropy(logits, masks)
    for given in (logits.contiguous(memory_format=torch.channels_last), logits.transpose(2, 3).contiguous().mT):
        assert torch.equal(upsampled_cross_entropy(given, masks.to(torch.int16)), expected)


def test_it_compiles_into_one_graph() -> None:
    logits, masks = case((6, 8), (22, 30), torch.float32)
    compiled = torch.compile(upsampled_cross_entropy, fullgraph=True, backend="aot_eager")
    ours, expected = compiled(logits, masks), upsampled_cross_entropy(logits, masks)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(ours, logits), gradient(expected, logits), rtol=1e-5, atol=1e-7)


def test_per_sample_gradients_by_torch_func() -> None:
    logits, masks = case((6, 8), (22, 30))
    ours = torch.func.grad(upsampled_cross_entropy)(logits.detach(), masks)
    torch.testing.assert_close(ours, gradient(naive(logits, masks), logits), rtol=1e-9, atol=1e-12)


def test_a_label_that_is_no_class_is_an_error() -> None:
    logits, masks = case((6, 8), (22, 30))
    masks[0, 0, 0] = 11
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        upsampled_cross_entropy(logits, masks)

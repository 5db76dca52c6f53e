"""Classes of upsampled logits by a kernel against torch's interpolation and argmax."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.ops import upsampled_argmax as module
from vitdense.ops.upsampled_argmax import upsampled_argmax

SIZES = [((6, 8), (25, 33)), ((4, 6), (16, 24)), ((9, 7), (4, 3)), ((1, 1), (9, 8))]


def upsampled(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=align_corners)


@pytest.fixture(autouse=True)
def no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module, "_classes")


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("cells", "size"), SIZES)
def test_loses_nothing_but_rounding(
    cells: tuple[int, int], size: tuple[int, int], align_corners: bool, device: str
) -> None:
    logits = torch.randn(2, 37, *cells, device=device)
    exact = upsampled(logits, size, align_corners)
    ours = upsampled_argmax(logits, size, align_corners=align_corners)
    won = exact.gather(1, ours[:, None].long())[:, 0]
    assert (exact.amax(dim=1) - won).max() < 1e-5
    assert (exact.amax(dim=1) > won).sum() < 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, device: str) -> None:
    logits = torch.randn(2, 19, 4, 3, device=device).to(dtype)
    assert torch.equal(upsampled_argmax(logits, (9, 8)), upsampled_argmax(logits.float(), (9, 8)))


@pytest.mark.parametrize("classes", [1, 3, 40])
def test_among_equals_the_lowest_index_wins(classes: int, device: str) -> None:
    """At a ratio of 4, sums of shares of small integers are exact."""
    logits = torch.randint(0, 2, (2, classes, 3, 5)).float().to(device)
    exact = upsampled(logits, (12, 20))
    equal = exact == exact.amax(dim=1, keepdim=True)
    lowest = torch.where(equal, torch.arange(classes, device=device).view(-1, 1, 1), classes).amin(dim=1)
    assert classes == 1 or (equal.sum(dim=1) > 1).any()
    assert torch.equal(upsampled_argmax(logits, (12, 20)).long(), lowest)


@pytest.mark.parametrize(("classes", "dtype"), [(255, torch.uint8), (256, torch.int16), (300, torch.int16)])
def test_every_class_index_fits(classes: int, dtype: torch.dtype, device: str) -> None:
    logits = torch.zeros(1, classes, 3, 5, device=device)
    logits[:, -1, 0] = 1
    logits[:, -2, 1:] = 1
    classified = upsampled_argmax(logits, (6, 7))
    assert classified.dtype == dtype
    assert set(classified.flatten().tolist()) == {classes - 1, classes - 2}


def test_any_memory_format(device: str) -> None:
    logits = torch.randn(2, 20, 4, 3, device=device)
    expected = upsampled_argmax(logits, (9, 8))
    assert torch.equal(upsampled_argmax(logits.to(memory_format=torch.channels_last), (9, 8)), expected)


def test_what_is_no_number_is_the_largest_as_for_torch(device: str) -> None:
    logits = torch.zeros(1, 20, 3, 3, device=device)
    logits[0, 18] = float("nan")
    assert (upsampled_argmax(logits, (7, 7)) == 18).all()

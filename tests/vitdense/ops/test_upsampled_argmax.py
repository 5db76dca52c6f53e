"""Classes of upsampled logits against torch's interpolation and argmax."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.ops import upsampled_argmax as module
from vitdense.ops.upsampled_argmax import upsampled_argmax

SIZES = [((63, 84), (250, 333)), ((16, 24), (64, 96)), ((20, 19), (7, 6)), ((1, 1), (9, 8)), ((9, 7), (9, 30))]
CLASSES = [1, 3, 33, 150]


def smooth(classes: int, cells: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Areas of a class, as trained heads give: most cells have one class at all corners."""
    return F.interpolate(torch.randn(2, classes, 4, 5, dtype=dtype), cells, mode="bicubic")


def upsampled(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=align_corners)


@pytest.fixture(params=[-1.0, 1.0], ids=["in_strips", "by_cells"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way for all maps."""
    monkeypatch.setattr(module, "MIXED", request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(("cells", "size"), SIZES)
def test_equals_argmax_of_torchs_interpolation(
    cells: tuple[int, int], size: tuple[int, int], classes: int, align_corners: bool
) -> None:
    for logits in (torch.randn(2, classes, *cells, dtype=torch.float64), smooth(classes, cells)):
        ours = upsampled_argmax(logits, size, align_corners=align_corners)
        assert torch.equal(ours.long(), upsampled(logits, size, align_corners).argmax(dim=1))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(250, 333), (252, 336)])
def test_single_and_half_precision_lose_nothing_but_rounding(dtype: torch.dtype, size: tuple[int, int]) -> None:
    for given in (torch.randn(2, 60, 63, 84, dtype=torch.float64), smooth(60, (63, 84))):
        logits = given.to(dtype)
        exact = upsampled(logits, size)
        won = exact.gather(1, upsampled_argmax(logits, size)[:, None].long())[:, 0]
        assert (exact.amax(dim=1) - won).max() < 1e-5
        assert (exact.amax(dim=1) > won).sum() < 10


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("classes", CLASSES)
def test_among_equals_the_lowest_index_wins(classes: int) -> None:
    """At a ratio of 4, sums of shares of small integers are exact."""
    logits = torch.randint(0, 2, (2, classes, 9, 11)).float()
    exact = upsampled(logits, (36, 44))
    equal = exact == exact.amax(dim=1, keepdim=True)
    lowest = torch.where(equal, torch.arange(classes).view(-1, 1, 1), classes).amin(dim=1)
    assert classes == 1 or (equal.sum(dim=1) > 1).any()
    assert torch.equal(upsampled_argmax(logits, (36, 44)).long(), lowest)
    assert upsampled_argmax(torch.zeros(1, classes, 3, 3), (7, 8)).count_nonzero() == 0


@pytest.mark.usefixtures("way")
def test_a_class_second_at_all_corners_can_win_between_them() -> None:
    logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 2.0]], [[1.5, 1.5]]]])  # (1, 3, 1, 2)
    assert upsampled_argmax(logits, (1, 8)).tolist() == [[[0, 0, 0, 2, 2, 1, 1, 1]]]


@pytest.mark.parametrize(("classes", "dtype"), [(255, torch.uint8), (256, torch.int16), (300, torch.int16)])
@pytest.mark.parametrize("size", [(3, 5), (6, 7)])
def test_every_class_index_fits(classes: int, dtype: torch.dtype, size: tuple[int, int]) -> None:
    logits = torch.zeros(1, classes, 3, 5)
    logits[:, -1, 0] = 1
    logits[:, -2, 1:] = 1
    classified = upsampled_argmax(logits, size)
    assert classified.dtype == dtype
    assert set(classified.flatten().tolist()) == {classes - 1, classes - 2}


@pytest.mark.usefixtures("way")
def test_pixels_at_a_time_don_t_show(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 40, 9, 7)
    whole = upsampled_argmax(logits, (33, 30))
    monkeypatch.setitem(module.VALUES, "cpu", 40 * 7)
    assert torch.equal(upsampled_argmax(logits, (33, 30)), whole)


def test_logits_are_never_interpolated_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(F, "interpolate")
    assert upsampled_argmax(torch.randn(2, 40, 9, 7), (33, 30)).any()


def test_any_memory_format() -> None:
    logits = torch.randn(2, 40, 9, 7)
    expected = upsampled_argmax(logits, (33, 30))
    assert torch.equal(upsampled_argmax(logits.contiguous(memory_format=torch.channels_last), (33, 30)), expected)


def test_the_share_of_mixed_cells_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module, "_in_strips")
    upsampled_argmax(smooth(40, (32, 40)), (128, 160))
    with pytest.raises(NameError):
        upsampled_argmax(torch.randn(2, 40, 32, 40), (128, 160))


def test_it_compiles_into_one_graph() -> None:
    logits = torch.randn(2, 40, 9, 7, dtype=torch.float64)
    compiled = torch.compile(upsampled_argmax, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits, (33, 30)), upsampled_argmax(logits, (33, 30)))

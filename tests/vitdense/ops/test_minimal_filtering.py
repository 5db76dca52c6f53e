"""The 3 x 3 convolution in fewer products equals torch's, at any size, and is only taken where it pays."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.ops import minimal_filtering
from vitdense.ops.minimal_filtering import conv3x3, pays

TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


@pytest.fixture(autouse=True)
def _small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minimal_filtering, "CHANNELS", 1)
    monkeypatch.setattr(minimal_filtering, "CELLS", 1)


def inputs(size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(2, 24, *size), (10, 24, 3, 3), (10,)]
    maps, weight, bias = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return maps, weight / weight[0].numel() ** 0.5, bias


@torch.no_grad()
@pytest.mark.parametrize("tiles", [1, 40, 256])
@pytest.mark.parametrize("size", [(32, 32), (21, 17), (64, 96), (1, 1), (1, 8), (5, 2)], ids=str)
@pytest.mark.parametrize(("dtype", "bound"), TOLERANCES)
def test_equals_torch(
    dtype: torch.dtype, bound: float, size: tuple[int, int], tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minimal_filtering, "TILES", tiles)
    maps, weight, bias = inputs(size, dtype)
    assert pays(maps, weight)
    for shift in (bias, None):
        expected = F.conv2d(maps, weight, shift, padding=1)
        assert float((conv3x3(maps, weight, shift) - expected).abs().max() / expected.abs().max()) < bound


def test_a_backward_pass_takes_torchs_own() -> None:
    maps, weight, bias = inputs((8, 8), torch.float64)
    weight.requires_grad_()
    assert not pays(maps, weight)
    assert conv3x3(maps, weight, bias).grad_fn is not None
    with torch.no_grad():
        assert pays(maps, weight)
        assert not pays(maps.half(), weight.half())
        with torch.autocast("cpu", torch.bfloat16):
            assert not pays(maps, weight)


def test_narrow_and_small_maps_take_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, weight, _ = inputs((8, 8), torch.float32)
    for name, enough in (("CHANNELS", 10), ("CELLS", 64)):
        monkeypatch.setattr(minimal_filtering, name, enough)
        assert pays(maps, weight)
        monkeypatch.setattr(minimal_filtering, name, enough + 1)
        assert not pays(maps, weight)
        monkeypatch.setattr(minimal_filtering, name, 1)

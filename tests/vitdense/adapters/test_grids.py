"""Resampling and cropping of grids: every cell stays over its own pixels, at any size."""

import pytest
import torch
from torch.nn import functional as F

from vitdense.adapters.grids import crop, crop_to, resample


def ramp(size: tuple[int, int], stride: int) -> torch.Tensor:
    """(1, 2, h, w): the pixel at the centre of each cell, (y, x)."""
    axes = [torch.arange(-(-pixels // stride)).double() * stride + stride / 2 for pixels in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


@pytest.mark.parametrize(
    ("stride", "target"), [(14, 4), (14, 8), (14, 16), (14, 32), (16, 4), (16, 32), (8, 32), (12, 8)]
)
@pytest.mark.parametrize("size", [(224, 224), (250, 333), (75, 98)])
def test_each_cell_reads_at_its_own_pixels(size: tuple[int, int], stride: int, target: int) -> None:
    given = ramp(size, stride)
    read = crop_to(resample(given, stride, target), torch.zeros(1, 3, *size), target)
    expected = ramp(size, target)
    # Half a cell from the edges there is nothing to read between: there the outermost cell is repeated.
    for axis in (0, 1):
        first, last = given[0, axis].amin(), given[0, axis].amax()
        torch.testing.assert_close(read[0, axis], expected[0, axis].clamp(first, last), atol=1e-9, rtol=0)


@pytest.mark.parametrize("factor", [4.0, 2.0, 0.5])
def test_powers_of_two_are_plain_interpolation(factor: float) -> None:
    maps = torch.randn(2, 3, 6, 8)
    expected = F.interpolate(maps, scale_factor=factor, mode="bilinear")
    torch.testing.assert_close(resample(maps, 16, int(16 / factor)), expected, atol=1e-6, rtol=0)


def test_the_same_stride_is_left_alone() -> None:
    maps = torch.randn(2, 3, 6, 8)
    assert resample(maps, 16, 16) is maps


def test_cropping_keeps_the_corner() -> None:
    maps = torch.randn(2, 3, 6, 8)
    assert torch.equal(crop(maps, 4, 7), maps[:, :, :4, :7])

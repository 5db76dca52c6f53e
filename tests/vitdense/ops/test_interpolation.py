"""Interpolation as sparse matrices: torch's places, strips that join, and the way back."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.ops.interpolation import Grid, grid_of, strips

SIZES = [((13, 9), (50, 33)), ((4, 6), (16, 24)), ((9, 7), (5, 3)), ((1, 1), (3, 4)), ((6, 5), (6, 5))]


def read(grid: Grid, maps: Tensor, size: tuple[int, int]) -> Tensor:
    parts = [grid.read(maps, strip) for strip in grid.rows]
    return torch.cat(parts).view(*size, -1).movedim(-1, 0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("values", [1, 300, 10**9])
@pytest.mark.parametrize(("cells", "size"), SIZES)
def test_strips_join_to_torchs_interpolation_and_its_gradient(
    cells: tuple[int, int], size: tuple[int, int], values: int, align_corners: bool
) -> None:
    maps = torch.randn(1, 3, *cells, dtype=torch.float64, requires_grad=True)
    grid = grid_of(maps, size, align_corners=align_corners, values=values)
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(read(grid, maps[0].detach(), size), expected[0], rtol=0, atol=1e-12)
    arrived = torch.randn_like(expected)
    gradient = torch.zeros_like(maps[0])
    for strip in grid.rows:
        grid.write(gradient, strip, arrived[0, :, strip.places].flatten(1).t().contiguous())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, maps, arrived)[0][0], rtol=0, atol=1e-12)


def test_strips_follow_each_other_without_gap() -> None:
    found = strips(7, 50, 8, align_corners=False, dtype=torch.float32, device=torch.device("cpu"))
    assert [strip.places.start for strip in found] == [0, 8, 16, 24, 32, 40, 48]
    assert found[-1].places.stop == 50
    assert all(strip.up.shares.dtype == torch.float32 for strip in found)


def test_half_precision_is_read_in_float32() -> None:
    maps = torch.randn(1, 3, 5, 6, dtype=torch.bfloat16)
    grid = grid_of(maps, (20, 24), align_corners=False, values=100)
    expected = F.interpolate(maps.float(), (20, 24), mode="bilinear")[0]
    torch.testing.assert_close(read(grid, maps[0], (20, 24)), expected, rtol=0, atol=1e-5)

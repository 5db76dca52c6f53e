"""Interpolated levels: mmsegmentation's formula where sizes divide, and a second writing of it where they don't."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.adapters.multilevel import MultiLevel
from vitdense.contracts import ADAPTERS, Level
from vitdense.errors import UserError

TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


def build(patch: int, count: int = 4, **options: object) -> MultiLevel:
    adapter = ADAPTERS.create("multilevel", options).build((Level(10, patch),) * count)
    assert isinstance(adapter, MultiLevel)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0.0, 0.12)
    return adapter


def lateral(adapter: MultiLevel, maps: Tensor, i: int) -> Tensor:
    weight, bias = adapter.lateral_convs[i].weight, adapter.lateral_convs[i].bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return torch.einsum("bchw,dc->bdhw", maps, weight[..., 0, 0]) + bias[:, None, None]


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("count", [1, 4])
def test_maps_equal_the_published_formula(count: int, dtype: torch.dtype, tolerance: float) -> None:
    adapter = build(16, count, channels=6).to(dtype)
    maps = [torch.randn(2, 10, 4, 6, dtype=dtype) for _ in range(count)]
    outputs = adapter(maps, torch.zeros(2, 3, 64, 96))
    for i, scale in enumerate((4, 2, 1, 0.5)):
        at = i if count == 4 else 0
        resized = F.interpolate(lateral(adapter, maps[at], at), scale_factor=scale, mode="bilinear")
        conv = adapter.convs[i]
        expected = F.conv2d(resized, conv.get_parameter("weight"), conv.get_parameter("bias"), padding=1)
        torch.testing.assert_close(outputs[i], expected, atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("patch", [14, 16])
def test_each_cell_reads_its_own_pixels_at_any_size(patch: int) -> None:
    """By a loop over cells: bilinear at the pixel of the cell's centre, between the centres of the patches."""
    adapter, size = build(patch).double(), (75, 98)
    grid = (-(-size[0] // patch), -(-size[1] // patch))
    maps = [torch.randn(1, 10, *grid, dtype=torch.float64) for _ in range(4)]
    outputs = adapter(maps, torch.zeros(1, 3, *size))

    def around(cell: int, stride: int, count: int) -> list[tuple[int, float]]:
        place = min(max((cell + 0.5) * stride / patch - 0.5, 0.0), count - 1.0)
        low = min(int(place), count - 2)
        return [(low, low + 1 - place), (low + 1, place - low)]

    for i, stride in enumerate((4, 8, 16, 32)):
        source = lateral(adapter, maps[i], i)
        rows, columns = -(-size[0] // stride), -(-size[1] // stride)
        read = torch.zeros(1, 10, rows, columns, dtype=torch.float64)
        for row in range(rows):
            for column in range(columns):
                for y, share_y in around(row, stride, grid[0]):
                    for x, share_x in around(column, stride, grid[1]):
                        read[..., row, column] += share_y * share_x * source[..., y, x]
        conv = adapter.convs[i]
        expected = F.conv2d(read, conv.get_parameter("weight"), conv.get_parameter("bias"), padding=1)
        torch.testing.assert_close(outputs[i], expected, atol=1e-9, rtol=0)


def test_other_numbers_of_maps_are_refused() -> None:
    with pytest.raises(UserError, match=r"multilevel takes 1 map or 4, and the backbone gives 3.*simple_pyramid"):
        build(16, 3)

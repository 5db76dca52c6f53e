"""The feature pyramid network: torchvision's where strides double, and aligned where they grow faster."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor

from vitdense.adapters.fpn import FPN
from vitdense.contracts import ADAPTERS, Level
from vitdense.errors import UserError

LEVELS = tuple(Level(8 * 2**i, 4 * 2**i) for i in range(4))
TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


def build(levels: tuple[Level, ...] = LEVELS, **options: object) -> FPN:
    adapter = ADAPTERS.create("fpn", {"channels": 12, **options}).build(levels)
    assert isinstance(adapter, FPN)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0.0, 0.12)
    return adapter


def pyramid(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [
        torch.randn(2, level.channels, -(-size[0] // level.stride), -(-size[1] // level.stride), dtype=dtype)
        for level in LEVELS
    ]


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("size", [(224, 160), (250, 333), (64, 96), (9, 5)])
@pytest.mark.parametrize("extra", [False, True])
def test_maps_equal_torchvision(extra: bool, size: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    ours = build(extra_level=extra).to(dtype)
    theirs = FeaturePyramidNetwork([8, 16, 32, 64], 12, LastLevelMaxPool() if extra else None).to(dtype)
    # torchvision wraps each convolution in a sequence of one.
    parts = {key: key.rpartition(".") for key in ours.state_dict()}
    theirs.load_state_dict({f"{parts[key][0]}.0.{parts[key][2]}": value for key, value in ours.state_dict().items()})
    maps = pyramid(size, dtype)
    expected = theirs(OrderedDict((str(i), each) for i, each in enumerate(maps)))
    outputs = ours(maps, torch.zeros(2, 3, *size))
    for own, other in zip(outputs, expected.values(), strict=True):
        torch.testing.assert_close(own, other, atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(250, 333), (75, 98), (9, 5)])
@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (4, 16, 32), (4, 12)])
def test_cells_lie_above_the_cells_they_cover(strides: tuple[int, ...], size: tuple[int, int]) -> None:
    """By a loop over cells: cell i gets what cell i // ratio of the coarser level knows."""
    adapter = build(tuple(Level(8, stride) for stride in strides), extra_level=True).double()
    maps = [torch.randn(1, 8, *(-(-n // stride) for n in size), dtype=torch.float64) for stride in strides]
    inner = [conv(each) for conv, each in zip(adapter.inner_blocks, maps, strict=True)]
    for i in range(len(strides) - 2, -1, -1):
        ratio = strides[i + 1] // strides[i]
        for row in range(inner[i].shape[2]):
            for column in range(inner[i].shape[3]):
                inner[i][:, :, row, column] += inner[i + 1][:, :, row // ratio, column // ratio]
    expected = [conv(each) for conv, each in zip(adapter.layer_blocks, inner, strict=True)]
    expected.append(expected[-1][:, :, ::2, ::2])
    outputs = adapter(maps, torch.zeros(1, 3, *size))
    assert [level.stride for level in adapter.levels] == [*strides, 2 * strides[-1]]
    for own, other, level in zip(outputs, expected, adapter.levels, strict=True):
        assert own.shape[2:] == (-(-size[0] // level.stride), -(-size[1] // level.stride))
        torch.testing.assert_close(own, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize("strides", [(16,), (8, 4), (4, 8, 12)])
def test_what_is_no_pyramid_is_refused(strides: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"fpn needs a pyramid.*simple_pyramid"):
        build(tuple(Level(8, stride) for stride in strides))

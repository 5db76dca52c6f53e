"""Feature2Pyramid: transformers' BEiT neck with the same weights, at any size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BeitConfig
from transformers.models.beit.modeling_beit import BeitFPNNeck

from vitdense.adapters.feature2pyramid import Feature2Pyramid
from vitdense.contracts import ADAPTERS, Level
from vitdense.errors import UserError

LEVELS = (Level(24, 16),) * 4
NAMES = {"fpn1.conv_transpose1": "fpn1.0", "fpn1.normalization": "fpn1.1", "fpn1.conv_transpose2": "fpn1.3"}
Enliven = Callable[[nn.Module], nn.Module]


def theirs(ours: nn.Module) -> Any:
    """transformers' neck with our weights; in memory its parts have names."""
    make: Any = BeitFPNNeck
    neck = make(BeitConfig(hidden_size=24, num_attention_heads=2)).to(next(ours.parameters()).dtype)
    state = ours.state_dict()
    own = {}
    for key in neck.state_dict():
        part, _, rest = key.rpartition(".")
        own[key] = state[f"{NAMES.get(part, 'fpn2.0')}.{rest}"]
    neck.load_state_dict(own)
    return neck.eval()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("size", [(64, 96), (250, 333), (75, 98)])
def test_maps_equal_transformers(size: tuple[int, int], dtype: torch.dtype, bound: float, enliven: Enliven) -> None:
    """Of grids that are even: theirs drops the last row and column of others, and is fed one more."""
    ours = enliven(ADAPTERS.create("feature2pyramid").build(LEVELS)).to(dtype).eval()
    ours.get_buffer("fpn1.1.running_mean").normal_()
    ours.get_buffer("fpn1.1.running_var").uniform_(0.5, 1.5)
    assert isinstance(ours, Feature2Pyramid)
    rows, columns = (-(-side // 16) for side in size)
    maps = [torch.randn(2, 24, rows, columns, dtype=dtype) for _ in LEVELS]
    even = [F.pad(each, (0, columns % 2, 0, rows % 2), mode="replicate") for each in maps]
    for level, own, other in zip(ours.levels, ours(maps, torch.zeros(2, 3, *size)), theirs(ours)(even), strict=True):
        tall, wide = (-(-side // level.stride) for side in size)
        assert own.shape == (2, 24, tall, wide)
        torch.testing.assert_close(own, other[..., :tall, :wide], rtol=0, atol=bound)


def test_other_numbers_of_maps_are_refused() -> None:
    with pytest.raises(UserError, match=r"feature2pyramid takes 4 maps, and the backbone gives 3: .*simple_pyramid"):
        ADAPTERS.create("feature2pyramid").build(LEVELS[:3])

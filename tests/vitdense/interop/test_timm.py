"""Backbones behind the face of timm's features_only."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitdense.interop.timm import FeaturesOnly


@torch.no_grad()
@pytest.mark.parametrize(("kind", "out_indices"), [("swin", (1, 3)), ("plain", None), ("timm", None)])
def test_feature_info_tells_the_truth(kind: str, out_indices: Any, make: Any, odd_images: Tensor) -> None:
    backbone = make(kind, out_indices=out_indices).eval()
    model = FeaturesOnly(backbone)
    maps = model(odd_images)
    assert model.feature_info.channels() == [each.shape[1] for each in maps]
    assert [tuple(each.shape[2:]) for each in maps] == [
        (-(-97 // stride), -(-130 // stride)) for stride in model.feature_info.reduction()
    ]
    assert [info["reduction"] for info in model.feature_info.get_dicts()] == [level.stride for level in backbone.levels]
    assert model.feature_info.out_indices == tuple(range(len(maps)))
    assert model.feature_info.channels(idx=[1]) == [backbone.levels[1].channels]

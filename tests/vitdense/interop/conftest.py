"""What the interop tests share: tiny backbones with a pyramid, odd pictures, and a stub of detectron2."""

import sys
from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vitdense
from vitdense.contracts import Backbone

Make = Callable[..., Backbone]


def made(kind: str, **options: Any) -> Backbone:
    """A backbone with strides 4, 8, 16, 32: a Swin, a plain ViT under a pyramid, or one of timm's."""
    if kind == "plain":
        return vitdense.create_backbone(
            "vit_nano_patch8", adapter={"name": "simple_pyramid", "channels": 32}, depth=2, **options
        )
    if kind == "timm":
        return vitdense.create_backbone("timm/test_convnext", **options)
    return vitdense.create_backbone("swin_nano", **options)


@pytest.fixture
def make() -> Make:
    return made


@pytest.fixture
def odd_images() -> Tensor:
    return torch.randn(1, 3, 97, 130, generator=torch.Generator().manual_seed(7))


class Detectron2Backbone(nn.Module, metaclass=ABCMeta):
    """detectron2.modeling.Backbone, as far as its FPN and its models read it."""

    @abstractmethod
    def forward(self) -> None: ...

    @property
    def size_divisibility(self) -> int:
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {}


class Registry(dict[str, Any]):
    """detectron2's registry: `register()` stands above a function."""

    def register(self) -> Callable[[Any], Any]:
        def add(made: Any) -> Any:
            self[made.__name__] = made
            return made

        return add


class FeaturePyramid(Detectron2Backbone):
    """What detectron2's FPN asks of the backbone below it: its class, log2-contiguous strides, exact doubling."""

    def __init__(self, bottom_up: Any, in_features: list[str], out_channels: int) -> None:
        super().__init__()
        assert isinstance(bottom_up, Detectron2Backbone)
        shapes = bottom_up.output_shape()  # type: ignore[operator]
        strides = [shapes[name].stride for name in in_features]
        assert all(b == 2 * a for a, b in pairwise(strides))
        self.bottom_up = bottom_up
        self.in_features = in_features
        self.lateral = nn.ModuleList(nn.Conv2d(shapes[name].channels, out_channels, 1) for name in in_features)
        self.divisibility = strides[-1]

    @property
    def size_divisibility(self) -> int:
        return int(self.divisibility)

    def forward(self, images: Tensor) -> list[Tensor]:  # type: ignore[override]
        maps = self.bottom_up(images)
        laterals = [conv(maps[name]) for conv, name in zip(self.lateral, self.in_features, strict=True)]
        results = [laterals[-1]]
        for lateral in laterals[-2::-1]:
            results.insert(0, lateral + F.interpolate(results[0], scale_factor=2, mode="nearest"))
        return results


@pytest.fixture
def detectron2(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`detectron2.modeling` with what a backbone meets there; everything else of detectron2 is missing."""
    modeling: Any = ModuleType("detectron2.modeling")
    modeling.Backbone, modeling.FPN, modeling.BACKBONE_REGISTRY = Detectron2Backbone, FeaturePyramid, Registry()
    monkeypatch.setitem(sys.modules, "detectron2", ModuleType("detectron2"))
    monkeypatch.setitem(sys.modules, "detectron2.modeling", modeling)
    return modeling  # type: ignore[no-any-return]

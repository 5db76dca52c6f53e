"""Levels in, levels out; importing this package registers the adapters."""

from vitdense.adapters.feature2pyramid import Feature2Pyramid, Feature2PyramidConfig
from vitdense.adapters.fpn import FPN, FPNConfig
from vitdense.adapters.multilevel import MultiLevel, MultiLevelConfig
from vitdense.adapters.reassemble import Reassemble, ReassembleConfig
from vitdense.adapters.simple_pyramid import SimplePyramid, SimplePyramidConfig
from vitdense.adapters.vit_adapter import ViTAdapter, ViTAdapterConfig

__all__ = [
    "FPN",
    "FPNConfig",
    "Feature2Pyramid",
    "Feature2PyramidConfig",
    "MultiLevel",
    "MultiLevelConfig",
    "Reassemble",
    "ReassembleConfig",
    "SimplePyramid",
    "SimplePyramidConfig",
    "ViTAdapter",
    "ViTAdapterConfig",
]

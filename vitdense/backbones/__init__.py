"""Backbones by name; importing this package registers them."""

from vitdense.backbones.external import ExternalBackbone, ExternalConfig
from vitdense.backbones.external_hf import HfBackbone, HfConfig
from vitdense.backbones.external_open_clip import OpenClipConfig, OpenClipResNet, OpenClipViT
from vitdense.backbones.external_timm import TimmBackbone, TimmConfig
from vitdense.backbones.hybrid import Hybrid, HybridConfig
from vitdense.backbones.inflation import inflate
from vitdense.backbones.per_frame import PerFrame, PerFrameConfig
from vitdense.backbones.swin import Swin, SwinConfig
from vitdense.backbones.swin_v2 import SwinV2Config
from vitdense.backbones.video_vit import FactorisedEncoderViT, VideoViT
from vitdense.backbones.video_vit_config import VideoViTConfig
from vitdense.backbones.vit import ViT
from vitdense.backbones.vit_config import ViTConfig

__all__ = [
    "ExternalBackbone",
    "ExternalConfig",
    "FactorisedEncoderViT",
    "HfBackbone",
    "HfConfig",
    "Hybrid",
    "HybridConfig",
    "OpenClipConfig",
    "OpenClipResNet",
    "OpenClipViT",
    "PerFrame",
    "PerFrameConfig",
    "Swin",
    "SwinConfig",
    "SwinV2Config",
    "TimmBackbone",
    "TimmConfig",
    "ViT",
    "ViTConfig",
    "VideoViT",
    "VideoViTConfig",
    "inflate",
]

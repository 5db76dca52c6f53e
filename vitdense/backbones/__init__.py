"""Backbones by name; importing this package registers them."""

from vitdense.backbones.external import ExternalBackbone, ExternalConfig
from vitdense.backbones.external_hf import HfBackbone, HfConfig
from vitdense.backbones.external_open_clip import OpenClipConfig, OpenClipResNet, OpenClipViT
from vitdense.backbones.external_timm import TimmBackbone, TimmConfig
from vitdense.backbones.swin import Swin, SwinConfig
from vitdense.backbones.vit import ViT, ViTConfig

__all__ = ["ExternalBackbone", "ExternalConfig", "HfBackbone", "HfConfig", "OpenClipConfig", "OpenClipResNet", "OpenClipViT", "Swin", "SwinConfig", "TimmBackbone", "TimmConfig", "ViT", "ViTConfig"]

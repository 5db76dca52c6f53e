"""Backbones by name; importing this package registers them."""

from vitdense.backbones.external import TimmBackbone, TimmConfig
from vitdense.backbones.swin import Swin, SwinConfig
from vitdense.backbones.vit import ViT
from vitdense.backbones.vit_config import ViTConfig

__all__ = ["Swin", "SwinConfig", "TimmBackbone", "TimmConfig", "ViT", "ViTConfig"]

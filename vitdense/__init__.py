"""Pictures, clips and volumes in, feature maps out, and any head on top; names load what they need on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitdense.build import create_backbone, list_backbones
    from vitdense.loading import load_model
    from vitdense.model import Model
    from vitdense.recipe import load_recipe
    from vitdense.weights import save_pretrained

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "create_backbone", "list_backbones", "load_model", "load_recipe", "save_pretrained"]

_HOMES = {
    "Model": "vitdense.model",
    "create_backbone": "vitdense.build",
    "list_backbones": "vitdense.build",
    "load_model": "vitdense.loading",
    "load_recipe": "vitdense.recipe",
    "save_pretrained": "vitdense.weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitdense' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

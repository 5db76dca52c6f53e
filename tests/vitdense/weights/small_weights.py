"""Networks that are made often, and weights read for them."""

from typing import Any

from vitdense.contracts import BACKBONES, Backbone
from vitdense.weights import Weights, read_weights

# Small enough to be made often.
SMALL: dict[str, dict[str, Any]] = {"vit_nano_patch8": {}, "swin_nano": {"depths": (1, 1), "num_heads": (1, 2)}}


def nano(name: str = "vit_nano_patch8", **options: Any) -> Backbone:
    return BACKBONES.create(name, {**SMALL[name], **options}).build().eval()


def read(source: Any, name: str = "vit_nano_patch8", **options: Any) -> Weights:
    return read_weights(source, BACKBONES.create(name, options))

"""Keys as torchvision names them."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitdense.weights.contents import Checkpoint
from vitdense.weights.families import Family

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _vit_options(_: Checkpoint, __: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-6, **_IMAGENET}


def _swin_options(_: Checkpoint, __: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-5, "always_shift": False, **_IMAGENET}


def _feature(match: re.Match[str]) -> str:
    """features.0 is the embedding, odd ones are stages, even ones the mergings before the next stage."""
    place = int(match[1])
    return f"layers.{place // 2}.blocks." if place % 2 else f"layers.{place // 2}.downsample."


FAMILIES = (
    Family(
        "torchvision",
        "vit",
        (r"conv_proj\.weight", r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight"),
        (
            (r"^class_token$", "cls_token"),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.ln\.", "norm."),
            (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
        ),
        r"heads\.",
        _vit_options,
    ),
    Family(
        "torchvision",
        "swin",
        (r"features\.0\.0\.weight", r"features\.1\.0\.attn\.qkv\.weight"),
        (
            (r"^features\.0\.0\.", "patch_embed.proj."),
            (r"^features\.0\.2\.", "patch_embed.norm."),
            (r"^features\.(\d+)\.", _feature),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
        ),
        r"head\.|.*\.relative_position_index$",
        _swin_options,
    ),
)

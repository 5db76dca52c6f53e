"""Keys of Hugging Face transformers, as version 4 named them (and files still do) and as version 5 does in memory."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.families import Family, Replacement, shifted_downsample

_PATCHES = r"embeddings\.patch_embeddings\.projection\.weight"
_LEFT_OUT = r"classifier\.|pooler\.|decoder\.|embeddings\.mask_token$|hidden_states_norms\.stem\.|.*_index$"

_EITHER: tuple[tuple[str, Replacement], ...] = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"\.attention\.(?:attention\.|self\.)?([qkv])(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
)


def _stage_norm(match: re.Match[str]) -> str:
    return f"norms.{int(match[1]) - 1}."


def _published(checkpoint: Checkpoint, default_eps: float) -> dict[str, Any]:
    activation = checkpoint.config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise WeightsError(f"{checkpoint.source} was trained with hidden_act {activation!r}; known here: 'gelu'")
    options: dict[str, Any] = {"layer_norm_eps": float(checkpoint.config.get("layer_norm_eps", default_eps))}
    for name in ("mean", "std"):
        if f"image_{name}" in checkpoint.preprocessor:
            options[name] = tuple(checkpoint.preprocessor[f"image_{name}"])
    return options


def _vit_options(checkpoint: Checkpoint, _: Mapping[str, Tensor]) -> dict[str, Any]:
    options = _published(checkpoint, 1e-12)
    if "num_attention_heads" in checkpoint.config:
        options["num_heads"] = checkpoint.config["num_attention_heads"]
    return {**options, "position_interpolation": "bicubic", "position_antialias": False}


def _swin_options(checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> dict[str, Any]:
    options = _published(checkpoint, 1e-5)
    if options["layer_norm_eps"] != 1e-5:
        # transformers keeps 1e-5 in the embedding and the mergings whatever this says: no one number would be right.
        raise WeightsError(f"{checkpoint.source} has layer_norm_eps {options['layer_norm_eps']}; known here: 1e-05")
    return {**options, "always_shift": any(key.startswith("norms.") for key in state)}


FAMILIES = (
    Family(
        "transformers",
        "vit",
        (_PATCHES, r"(?:encoder\.layer|layers)\.0\.layernorm_before\.weight"),
        (
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^(?:encoder\.layer|layers)\.", "blocks."),
            *_EITHER,
        ),
        _LEFT_OUT,
        _vit_options,
    ),
    Family(
        "transformers",
        "swin",
        (_PATCHES, r"encoder\.layers\.0\.blocks\.0\.layernorm_before\.weight"),
        (
            (r"^embeddings\.norm\.", "patch_embed.norm."),
            (r"^hidden_states_norms\.stage(\d+)\.", _stage_norm),
            (r"^encoder\.layers\.", "layers."),
            (r"^layers\.(\d+)\.downsample\.", shifted_downsample),
            (r"\.attention\.(?:self|relative_position_bias)\.relative_", ".attn.relative_"),
            *_EITHER,
        ),
        _LEFT_OUT,
        _swin_options,
    ),
)

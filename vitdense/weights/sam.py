"""SAM's encoder (https://arxiv.org/abs/2304.02643) and ViTDet (2203.16527): windows and decomposed positions."""

import math
from typing import Any

import torch
from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, Export, State
from vitdense.weights.facts import IMAGENET, timm_facts, timm_record, transformers_facts, transformers_preprocessor
from vitdense.weights.rows import Change, Row

# They keep the table of positions as a map, (1, h, w, C); ours, which has no other sign, is flat already.
_flat = Change(lambda table: table.flatten(1, -2), lambda table: torch.unflatten(table, 1, (_side(table), -1)))


def _side(table: Tensor) -> int:
    return math.isqrt(table.shape[1])


TIMM = (
    Row("pos_embed", "pos_embed", change=_flat),
    Row("*", "*"),
)

# The authors' own names, below `image_encoder`.
OFFICIAL = (
    Row("pos_embed", "pos_embed", change=_flat),
    Row("blocks.{i}.mlp.lin{j}.*", "blocks.{i}.mlp.fc{j}.*"),
    Row("*", "*"),
)

# SamVisionModel holds its encoder under this name, SamModel directly.
_ENCODER = "vision_encoder."
TRANSFORMERS = tuple(
    Row((_ENCODER + theirs, theirs), ours, change=change)
    for theirs, ours, change in (
        ("pos_embed", "pos_embed", _flat),
        ("patch_embed.projection.*", "patch_embed.proj.*", None),
        ("layers.{i}.layer_norm{j}.*", "blocks.{i}.norm{j}.*", None),
        ("layers.{i}.mlp.lin{j}.*", "blocks.{i}.mlp.fc{j}.*", None),
        ("layers.{i}.attn.*", "blocks.{i}.attn.*", None),
        ("neck.conv1.*", "neck.0.*", None),
        ("neck.layer_norm1.*", "neck.1.*", None),
        ("neck.conv2.*", "neck.2.*", None),
        ("neck.layer_norm2.*", "neck.3.*", None),
    )
)

VITDET = (
    Row("embeddings.position_embeddings", "pos_embed"),
    Row("embeddings.projection.*", "patch_embed.proj.*"),
    Row("encoder.layer.{i}.attention.*", "blocks.{i}.attn.*"),
    Row("encoder.layer.{i}.*", "blocks.{i}.*"),
)

# ---------------------------------------------------------------- options


# timm's encoder has torch's eps, ten times the authors': its numbers are its own, and so are weights saved from it.
_TIMM_EPS = 1e-5


def _timm(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    return {"layer_norm_eps": _TIMM_EPS, **timm_facts(checkpoint)}


def _official(_: Checkpoint, __: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-6, **IMAGENET}


def _transformers(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    vision = checkpoint.config.get("vision_config", checkpoint.config)
    checkpoint = Checkpoint(checkpoint.state, checkpoint.source, vision, checkpoint.preprocessor)
    return transformers_facts(checkpoint, layer_norm_eps=1e-6)


def _vitdet(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    decomposed = any(key.endswith("rel_pos_h") for key in state)
    return {
        **transformers_facts(checkpoint, layer_norm_eps=1e-6),
        "relations": "decomposed" if decomposed else "none",
        "position_interpolation": "bicubic",
        "position_antialias": False,
        "final_norm": "none",
    }


# ---------------------------------------------------------------- and back

_SAYS = frozenset({"embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "image_size", "qkv_bias"}) | {
    "window",
    "global_blocks",
    "neck_channels",
}
_FIXED = {"cls_token": False, "pool": "mean", "relations": "decomposed", "final_norm": "none"}


def _timm_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    record = timm_record(
        backbone,
        architecture="samvit_base_patch16",
        model_args={
            "img_size": options["image_size"],
            "patch_size": options["patch_size"],
            "embed_dim": options["embed_dim"],
            "depth": options["depth"],
            "num_heads": options["num_heads"],
            "mlp_ratio": options["mlp_ratio"],
            "qkv_bias": options["qkv_bias"],
            "window_size": options["window"] or 0,
            "global_attn_indexes": list(options["global_blocks"]),
            "neck_chans": options["neck_channels"],
        },
        size=options["image_size"],
        classifier="head.fc",
    )
    return {"config.json": record}


def _transformers_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    config = {
        "architectures": ["SamVisionModel"],
        "model_type": "sam_vision_model",
        "hidden_size": options["embed_dim"],
        "num_hidden_layers": options["depth"],
        "num_attention_heads": options["num_heads"],
        "mlp_dim": int(options["embed_dim"] * options["mlp_ratio"]),
        "mlp_ratio": options["mlp_ratio"],
        "hidden_act": options["activation"],
        "layer_norm_eps": options["layer_norm_eps"],
        "image_size": options["image_size"],
        "patch_size": options["patch_size"],
        "num_channels": len(backbone.mean),
        "qkv_bias": options["qkv_bias"],
        "window_size": options["window"] or 0,
        "global_attn_indexes": list(options["global_blocks"]),
        "output_channels": options["neck_channels"],
        "use_abs_pos": True,
        "use_rel_pos": True,
        "torch_dtype": "float32",
    }
    processor = transformers_preprocessor(backbone, kind="SamImageProcessor", size=options["image_size"])
    return {"config.json": config, "preprocessor_config.json": processor}


# ---------------------------------------------------------------- dialects

DIALECTS = (
    Dialect(
        "transformers",
        "sam",
        "vit",
        has=("patch_embed.projection.weight", "layers.{i}.attn.rel_pos_h", "neck.conv1.weight"),
        table=TRANSFORMERS,
        left_out=("mask_decoder.*", "prompt_encoder.*", "shared_image_embedding.*"),
        inner=_ENCODER,
        options=_transformers,
        export=Export(_transformers_files, says=_SAYS | {"layer_norm_eps", "activation"}, fixed=_FIXED),
    ),
    Dialect(
        "transformers",
        "vitdet",
        "vit",
        has=("embeddings.projection.weight", "encoder.layer.{i}.attention.qkv.weight"),
        table=VITDET,
        options=_vitdet,
    ),
    Dialect(
        "official",
        "sam",
        "vit",
        has=("patch_embed.proj.weight", "blocks.{i}.attn.rel_pos_h", "blocks.{i}.mlp.lin1.weight"),
        table=OFFICIAL,
        options=_official,
    ),
    Dialect(
        "timm",
        "sam",
        "vit",
        has=("patch_embed.proj.weight", "blocks.{i}.attn.rel_pos_h", "neck.0.weight"),
        table=TIMM,
        left_out=("head.*",),
        options=_timm,
        export=Export(_timm_files, says=_SAYS, fixed={**_FIXED, "layer_norm_eps": _TIMM_EPS}),
    ),
)

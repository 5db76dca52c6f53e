"""BEiT and BEiT v2 (https://arxiv.org/abs/2106.08254), as their authors and timm, and as transformers name them."""

import re
from typing import Any

from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, Export, State
from vitdense.weights.facts import timm_facts, timm_record, transformers_facts, transformers_preprocessor
from vitdense.weights.rows import Row

_TABLE = "blocks.{i}.attn.relative_position_bias_table"

# The authors' names are timm's; a table that all blocks share stands beside them until it has been dealt out.
TIMM = (
    Row("blocks.{i}.gamma_{j}", "blocks.{i}.ls{j}.gamma"),
    Row("*", "*"),
)

TRANSFORMERS = (
    Row("embeddings.cls_token", "cls_token"),
    Row("embeddings.position_embeddings", "pos_embed"),
    Row("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    Row(("encoder.layer.{i}.layernorm_before.*", "layers.{i}.layernorm_before.*"), "blocks.{i}.norm1.*"),
    Row(
        ("encoder.layer.{i}.attention.attention.query.weight", "layers.{i}.attention.q_proj.weight"),
        "blocks.{i}.attn.qkv.weight",
        part=(0, 3),
    ),
    Row(
        ("encoder.layer.{i}.attention.attention.key.weight", "layers.{i}.attention.k_proj.weight"),
        "blocks.{i}.attn.qkv.weight",
        part=(1, 3),
    ),
    Row(
        ("encoder.layer.{i}.attention.attention.value.weight", "layers.{i}.attention.v_proj.weight"),
        "blocks.{i}.attn.qkv.weight",
        part=(2, 3),
    ),
    Row(
        ("encoder.layer.{i}.attention.attention.query.bias", "layers.{i}.attention.q_proj.bias"),
        "blocks.{i}.attn.q_bias",
    ),
    Row(
        ("encoder.layer.{i}.attention.attention.value.bias", "layers.{i}.attention.v_proj.bias"),
        "blocks.{i}.attn.v_bias",
    ),
    Row(
        (
            "encoder.layer.{i}.attention.attention.relative_position_bias.relative_position_bias_table",
            "layers.{i}.relative_position_bias.relative_position_bias_table",
        ),
        _TABLE,
    ),
    Row(("encoder.layer.{i}.attention.output.dense.*", "layers.{i}.attention.o_proj.*"), "blocks.{i}.attn.proj.*"),
    Row(("encoder.layer.{i}.lambda_{j}", "layers.{i}.lambda_{j}"), "blocks.{i}.ls{j}.gamma"),
    Row(("encoder.layer.{i}.layernorm_after.*", "layers.{i}.layernorm_after.*"), "blocks.{i}.norm2.*"),
    Row(("encoder.layer.{i}.intermediate.dense.*", "layers.{i}.mlp.fc1.*"), "blocks.{i}.mlp.fc1.*"),
    Row(("encoder.layer.{i}.output.dense.*", "layers.{i}.mlp.fc2.*"), "blocks.{i}.mlp.fc2.*"),
    Row("pooler.layernorm.*", "fc_norm.*"),
    Row("layernorm.*", "norm.*"),
)

_SHARED = {
    "rel_pos_bias.relative_position_bias_table": _TABLE,
    "encoder.relative_position_bias.relative_position_bias_table": TRANSFORMERS[9].names[0],
    "shared_position_bias.relative_position_bias_table": TRANSFORMERS[9].names[1],
}
_BLOCK = re.compile(r"(?:blocks|encoder\.layer|layers)\.(\d+)\.")


def _deal_out(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A table that all blocks share, as in pretraining, becomes each block's: the same numbers."""
    dealt = dict(state)
    blocks = sorted({match[1] for key in state if (match := _BLOCK.match(key))}, key=int)
    for shared, own in _SHARED.items():
        if shared in dealt:
            table = dealt.pop(shared)
            dealt |= {own.replace("{i}", block): table for block in blocks}
    return dealt


# ---------------------------------------------------------------- options


def _structure(state: State) -> dict[str, Any]:
    """What differs between pretrained, fine-tuned and headless checkpoints of one size."""
    final = "pooled" if "fc_norm.weight" in state else "tokens" if "norm.weight" in state else "none"
    return {"final_norm": final, "positions": "learned" if "pos_embed" in state else "none"}


def _timm(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-6, **timm_facts(checkpoint), **_structure(state)}


def _transformers(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    facts = transformers_facts(checkpoint, layer_norm_eps=1e-12)
    return {**facts, "position_interpolation": "bicubic", "position_antialias": False, **_structure(state)}


# ---------------------------------------------------------------- and back

_SAYS = frozenset({"embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "image_size", "layer_scale"})
_FIXED = {"relations": "table", "qkv_bias": "qv", "pool": "mean", "final_norm": "pooled"}


def _timm_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    record = timm_record(
        backbone,
        architecture="beit_base_patch16_224" if options["embed_dim"] < 1024 else "beit_large_patch16_224",
        model_args={
            "img_size": options["image_size"],
            "patch_size": options["patch_size"],
            "embed_dim": options["embed_dim"],
            "depth": options["depth"],
            "num_heads": options["num_heads"],
            "mlp_ratio": options["mlp_ratio"],
            "init_values": options["layer_scale"],
            "use_abs_pos_emb": options["positions"] == "learned",
        },
        size=options["image_size"],
        classifier="head",
    )
    return {"config.json": record}


def _transformers_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    config = {
        "architectures": ["BeitModel"],
        "model_type": "beit",
        "hidden_size": options["embed_dim"],
        "num_hidden_layers": options["depth"],
        "num_attention_heads": options["num_heads"],
        "intermediate_size": int(options["embed_dim"] * options["mlp_ratio"]),
        "hidden_act": options["activation"],
        "layer_norm_eps": options["layer_norm_eps"],
        "image_size": options["image_size"],
        "patch_size": options["patch_size"],
        "num_channels": len(backbone.mean),
        "layer_scale_init_value": options["layer_scale"],
        "use_absolute_position_embeddings": options["positions"] == "learned",
        "use_relative_position_bias": True,
        "use_mean_pooling": True,
        "torch_dtype": "float32",
    }
    processor = transformers_preprocessor(backbone, kind="BeitImageProcessor", size=options["image_size"])
    return {"config.json": config, "preprocessor_config.json": processor}


def _timm_notes(options: dict[str, Any]) -> list[str]:
    return [f"timm takes pictures of {options['image_size']} x {options['image_size']} only"]


_POSITIONS = frozenset({"positions"})

# ---------------------------------------------------------------- dialects

DIALECTS = (
    Dialect(
        "transformers",
        "beit",
        "vit",
        has=(
            "embeddings.patch_embeddings.projection.weight",
            ("encoder.layer.{i}.lambda_1", "layers.{i}.lambda_1"),
        ),
        table=TRANSFORMERS,
        left_out=(
            "classifier.*",
            "lm_head.*",
            "layernorm_lm.*",
            "embeddings.mask_token",
            "fpn?.*",
            "*_head.*",
            "fpn.*",
        ),
        prepare=_deal_out,
        options=_transformers,
        export=Export(_transformers_files, says=_SAYS | _POSITIONS | {"layer_norm_eps", "activation"}, fixed=_FIXED),
    ),
    Dialect(
        "timm",
        "beit",
        "vit",
        has=("blocks.{i}.gamma_1", "blocks.{i}.attn.q_bias", "patch_embed.proj.weight"),
        lacks=("blocks.{i}.mlp.w1.weight", "reg_token", "storage_tokens"),
        table=TIMM,
        left_out=("head.*", "lm_head.*", "mask_token", "*.relative_position_index", "cls_pt_layers.*"),
        prepare=_deal_out,
        options=_timm,
        export=Export(
            _timm_files, says=_SAYS | _POSITIONS, fixed={**_FIXED, "layer_norm_eps": 1e-6}, notes=_timm_notes
        ),
    ),
)

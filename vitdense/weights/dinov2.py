"""DINOv2 with and without registers, as its authors, timm and transformers name it."""

from typing import Any

import torch
from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, Export, State
from vitdense.weights.facts import (
    ANTIALIASED,
    BICUBIC,
    IMAGENET,
    timm_facts,
    transformers_facts,
    transformers_preprocessor,
)
from vitdense.weights.rows import Row
from vitdense.weights.vit import TIMM
from vitdense.weights.vit_files import position_notes, transformers_activation

# ---------------------------------------------------------------- tables

# Blocks in chunks, as checkpoints of a training have them, keep their numbers: blocks.1.6 is block 6.
OFFICIAL = (
    Row("register_tokens", "reg_token"),
    Row(("blocks.{i}.mlp.w12.*", "blocks.{c}.{i}.mlp.w12.*"), "blocks.{i}.mlp.fc1.*"),
    Row(("blocks.{i}.mlp.w3.*", "blocks.{c}.{i}.mlp.w3.*"), "blocks.{i}.mlp.fc2.*"),
    Row("blocks.{c}.{i}.*", "blocks.{i}.*"),
    Row("*", "*"),
)

# Files have the names of version 4, models in memory those of version 5.
_LAYER, _QKV = "encoder.layer.{i}", "blocks.{i}.attn.qkv.*"
_SHARED = (
    Row("embeddings.cls_token", "cls_token"),
    Row("embeddings.register_tokens", "reg_token"),
    Row("embeddings.mask_token", "mask_token"),
    Row("embeddings.position_embeddings", "pos_embed"),
    Row("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    Row(_LAYER + ".norm{j}.*", "blocks.{i}.norm{j}.*"),
    Row((_LAYER + ".attention.attention.query.*", _LAYER + ".attention.q_proj.*"), _QKV, part=(0, 3)),
    Row((_LAYER + ".attention.attention.key.*", _LAYER + ".attention.k_proj.*"), _QKV, part=(1, 3)),
    Row((_LAYER + ".attention.attention.value.*", _LAYER + ".attention.v_proj.*"), _QKV, part=(2, 3)),
    Row((_LAYER + ".attention.output.dense.*", _LAYER + ".attention.o_proj.*"), "blocks.{i}.attn.proj.*"),
    Row(_LAYER + ".layer_scale{j}.lambda1", "blocks.{i}.ls{j}.gamma"),
    Row("layernorm.*", "norm.*"),
)
PLAIN = (*_SHARED, Row(_LAYER + ".mlp.fc{j}.*", "blocks.{i}.mlp.fc{j}.*"))
GATED = (
    *_SHARED,
    Row(_LAYER + ".mlp.weights_in.*", "blocks.{i}.mlp.fc1.*"),
    Row(_LAYER + ".mlp.gate_proj.*", "blocks.{i}.mlp.fc1.*", part=(0, 2)),
    Row(_LAYER + ".mlp.up_proj.*", "blocks.{i}.mlp.fc1.*", part=(1, 2)),
    Row((_LAYER + ".mlp.weights_out.*", _LAYER + ".mlp.down_proj.*"), "blocks.{i}.mlp.fc2.*"),
)

# ---------------------------------------------------------------- options


def _timm(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    return {**ANTIALIASED, **timm_facts(checkpoint)}


def _official(_: Checkpoint, state: State) -> dict[str, Any]:
    positions = ANTIALIASED if "reg_token" in state else {**BICUBIC, "position_offset": 0.1}
    return {"layer_norm_eps": 1e-6, **positions, **IMAGENET}


def _transformers(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    positions = ANTIALIASED if "reg_token" in state else BICUBIC
    return {**transformers_facts(checkpoint, layer_norm_eps=1e-6), **positions}


def _transformers_gated(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    # What config.json says about the activation is not asked for a gate.
    return {**_transformers(checkpoint, state), "activation": "silu"}


# ---------------------------------------------------------------- and back

_SHAPE = frozenset({"embed_dim", "depth", "num_heads", "patch_size", "image_size", "qkv_bias"})
_GATE = {"mlp": "gated", "activation": "silu"}


def _with_mask_token(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' networks have a token for masked patches: zeros, as before any training."""
    return {**state, "mask_token": torch.zeros_like(state["cls_token"])[0]}


def _transformers_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    kind = "Dinov2WithRegisters" if options["num_registers"] else "Dinov2"
    gated = options["mlp"] == "gated"
    ratio = round(options["mlp_ratio"] * 1.5 if gated else options["mlp_ratio"])
    hidden = ratio * options["embed_dim"]
    theirs = (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden
    ours = int(options["embed_dim"] * options["mlp_ratio"])
    if ours != theirs:
        raise UserError(
            f"mlp_ratio {options['mlp_ratio']}: transformers' {kind} has {theirs} channels there, not {ours}"
        )
    config = {
        "architectures": [f"{kind}Model"],
        "model_type": "dinov2_with_registers" if options["num_registers"] else "dinov2",
        "hidden_size": options["embed_dim"],
        "num_hidden_layers": options["depth"],
        "num_attention_heads": options["num_heads"],
        "mlp_ratio": ratio,
        "hidden_act": "gelu" if gated else transformers_activation(options["activation"]),
        "layer_norm_eps": options["layer_norm_eps"],
        "image_size": options["image_size"],
        "patch_size": options["patch_size"],
        "num_channels": len(backbone.mean),
        "qkv_bias": options["qkv_bias"],
        "layerscale_value": options["layer_scale"],
        "use_swiglu_ffn": gated,
        "apply_layernorm": options["norm_maps"],
        "torch_dtype": "float32",
    }
    if options["num_registers"]:
        config["num_register_tokens"] = options["num_registers"]
    processor = transformers_preprocessor(backbone, kind="BitImageProcessor", size=options["image_size"])
    return {"config.json": config, "preprocessor_config.json": processor}


def _transformers_notes(options: dict[str, Any]) -> list[str]:
    return position_notes(options, antialias=bool(options["num_registers"]))


def _to_transformers(*, gated: bool, registers: bool) -> Export:
    return Export(
        _transformers_files,
        says=_SHAPE | {"mlp_ratio", "layer_norm_eps"} | (set() if gated else {"activation"}),
        needs=frozenset({"layer_scale", *(("num_registers",) if registers else ())}),
        fixed=_GATE if gated else {},
        finish=_with_mask_token,
        notes=_transformers_notes,
    )


# ---------------------------------------------------------------- dialects

_PATCHES = "embeddings.patch_embeddings.projection.weight"
_SCALE = _LAYER + ".layer_scale1.lambda1"
_GATES = (_LAYER + ".mlp.weights_in.weight", _LAYER + ".mlp.gate_proj.weight")
_REGISTERS = "embeddings.register_tokens"


def _dialect(name: str, *, gated: bool, registers: bool) -> Dialect:
    return Dialect(
        "transformers",
        name,
        "vit",
        has=(_PATCHES, _SCALE, *((_GATES,) if gated else ()), *((_REGISTERS,) if registers else ())),
        lacks=(*(() if gated else _GATES), *(() if registers else (_REGISTERS,))),
        table=GATED if gated else PLAIN,
        left_out=("classifier.*", "embeddings.mask_token"),
        options=_transformers_gated if gated else _transformers,
        export=_to_transformers(gated=gated, registers=registers),
    )


DIALECTS = (
    Dialect(
        "official",
        "dinov2",
        "vit",
        has=("mask_token", ("blocks.{i}.ls1.gamma", "blocks.{c}.{i}.ls1.gamma")),
        table=OFFICIAL,
        left_out=("mask_token", "head.*"),
        options=_official,
    ),
    Dialect(
        "timm",
        "dinov2",
        "vit",
        has=("patch_embed.proj.weight", "blocks.{i}.ls1.gamma", "blocks.{i}.attn.qkv.weight"),
        table=TIMM,
        left_out=("head.*",),
        options=_timm,
    ),
    _dialect("dinov2", gated=False, registers=False),
    _dialect("dinov2 with registers", gated=False, registers=True),
    _dialect("gated dinov2", gated=True, registers=False),
    _dialect("gated dinov2 with registers", gated=True, registers=True),
)

"""CLIP's picture towers (https://arxiv.org/abs/2103.00020), as OpenAI, open_clip, timm and transformers name them."""

from dataclasses import replace
from typing import Any

from vitdense.contracts import Backbone
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, Export, State
from vitdense.weights.facts import (
    ANTIALIASED,
    BICUBIC,
    timm_epsilon,
    timm_facts,
    transformers_facts,
    transformers_preprocessor,
)
from vitdense.weights.rows import Change, Row
from vitdense.weights.vit_files import position_notes, transformers_activation

# ---------------------------------------------------------------- tables

_token = Change(lambda vector: vector[None, None], lambda token: token[0, 0])
table = Change(lambda table: table[None], lambda table: table[0])

_BLOCK = "transformer.resblocks.{i}"
OPEN_CLIP = (
    Row("class_embedding", "cls_token", change=_token),
    Row("positional_embedding", "pos_embed", change=table),
    Row("conv1.weight", "patch_embed.proj.weight"),
    Row("ln_pre.*", "norm_pre.*"),
    Row(_BLOCK + ".ln_{j}.*", "blocks.{i}.norm{j}.*"),
    Row(_BLOCK + ".ls_{j}.gamma", "blocks.{i}.ls{j}.gamma"),
    Row(_BLOCK + ".attn.in_proj_*", "blocks.{i}.attn.qkv.*"),
    Row(_BLOCK + ".attn.out_proj.*", "blocks.{i}.attn.proj.*"),
    Row(_BLOCK + ".mlp.c_fc.*", "blocks.{i}.mlp.fc1.*"),
    Row(_BLOCK + ".mlp.c_proj.*", "blocks.{i}.mlp.fc2.*"),
    Row("ln_post.*", "norm.*"),
)

CLIPA = (Row("ln_post.*", "fc_norm.*"), *OPEN_CLIP[:-1])

_LAYER, _QKV = "encoder.layers.{i}", "blocks.{i}.attn.qkv.*"
ENCODER = (
    Row("embeddings.position_embedding.weight", "pos_embed", change=table),
    Row(_LAYER + ".layer_norm{j}.*", "blocks.{i}.norm{j}.*"),
    Row(_LAYER + ".self_attn.q_proj.*", _QKV, part=(0, 3)),
    Row(_LAYER + ".self_attn.k_proj.*", _QKV, part=(1, 3)),
    Row(_LAYER + ".self_attn.v_proj.*", _QKV, part=(2, 3)),
    Row(_LAYER + ".self_attn.out_proj.*", "blocks.{i}.attn.proj.*"),
    Row(_LAYER + ".mlp.fc{j}.*", "blocks.{i}.mlp.fc{j}.*"),
    Row("post_layernorm.*", "norm.*"),
)
TRANSFORMERS = (
    Row("embeddings.class_embedding", "cls_token", change=_token),
    Row("embeddings.patch_embedding.weight", "patch_embed.proj.weight"),
    Row("pre_layrnorm.*", "norm_pre.*"),  # their spelling
    *ENCODER,
)

TIMM = (Row("*", "*"),)

# ---------------------------------------------------------------- options


def _open_clip(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    """open_clip_config.json tells the activation, and so does OpenAI's mark; other tensors alone don't."""
    network, pixels = (checkpoint.config.get(name) for name in ("model_cfg", "preprocess_cfg"))
    facts: dict[str, Any] = {"layer_norm_eps": 1e-5, **ANTIALIASED}
    if "input_resolution" in checkpoint.state:
        facts["activation"] = "quick_gelu"
    if network is not None:
        tower = network["vision_cfg"]
        facts["activation"] = "quick_gelu" if network.get("quick_gelu", False) else "gelu"
        facts["num_heads"] = tower.get("width", 768) // tower.get("head_width", 64)
    return facts | {name: tuple(pixels[name]) for name in ("mean", "std") if pixels and name in pixels}


def _clipa(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    """CLIPA (https://arxiv.org/abs/2305.07017) norms the mean of the patches, and nothing before the blocks."""
    return {**_open_clip(checkpoint, state), "pre_norm": False, "pool": "mean", "final_norm": "pooled"}


def vision_of(checkpoint: Checkpoint) -> Checkpoint:
    """The same with what config.json says about the picture tower alone."""
    return replace(checkpoint, config=checkpoint.config.get("vision_config", checkpoint.config))


def _transformers(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    # A config.json that doesn't name the activation means its class's; without one the preset's stands.
    default = "quick_gelu" if checkpoint.config else None
    return {**transformers_facts(vision_of(checkpoint), layer_norm_eps=1e-5, activation=default), **BICUBIC}


def _timm(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    trained = {**ANTIALIASED, **_timms_activation(checkpoint), **timm_facts(checkpoint)}
    return trained | timm_epsilon(checkpoint, otherwise=1e-5)


def _timms_activation(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the weights were trained with: timm's own networks of the same name compute all of them with GELU."""
    if "architecture" not in checkpoint.config:
        return {}
    record = checkpoint.config.get("pretrained_cfg", {})
    words = " ".join([checkpoint.config["architecture"], *record.get("notes", ())]).lower()
    quick = "quickgelu" in words or record.get("tag") == "openai"
    return {"activation": "quick_gelu" if quick else "gelu"}


# ---------------------------------------------------------------- and back

_SAYS = frozenset({"embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "image_size", "activation"})
_FIXED = {"patch_bias": False, "pre_norm": True}


def _transformers_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    config = {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": options["embed_dim"],
        "num_hidden_layers": options["depth"],
        "num_attention_heads": options["num_heads"],
        "intermediate_size": int(options["embed_dim"] * options["mlp_ratio"]),
        "hidden_act": transformers_activation(options["activation"]),
        "layer_norm_eps": options["layer_norm_eps"],
        "image_size": options["image_size"],
        "patch_size": options["patch_size"],
        "num_channels": len(backbone.mean),
        "torch_dtype": "float32",
    }
    processor = transformers_preprocessor(backbone, kind="CLIPImageProcessor", size=options["image_size"])
    return {"config.json": config, "preprocessor_config.json": processor}


_TO_TRANSFORMERS = Export(
    _transformers_files,
    says=_SAYS | {"layer_norm_eps"},
    fixed=_FIXED,
    notes=lambda options: ["their tokens are not normed", *position_notes(options, antialias=False)],
)

# ---------------------------------------------------------------- dialects

DIALECTS = (
    Dialect(
        "open_clip",
        "clipa",
        "vit",
        has=("class_embedding", "conv1.weight", _BLOCK + ".attn.in_proj_weight"),
        lacks=("ln_pre.weight",),
        table=CLIPA,
        left_out=("proj",),
        options=_clipa,
    ),
    Dialect(
        "open_clip",
        "clip",
        "vit",
        has=("class_embedding", "conv1.weight", _BLOCK + ".attn.in_proj_weight"),
        table=OPEN_CLIP,
        left_out=("proj",),
        options=_open_clip,
    ),
    Dialect(
        "transformers",
        "clip",
        "vit",
        has=("embeddings.class_embedding", "pre_layrnorm.weight", _LAYER + ".self_attn.q_proj.weight"),
        table=TRANSFORMERS,
        left_out=("embeddings.position_ids",),
        options=_transformers,
        export=_TO_TRANSFORMERS,
    ),
    Dialect(
        "timm",
        "clip",
        "vit",
        has=("norm_pre.weight", "patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight"),
        table=TIMM,
        left_out=("head.*",),
        options=_timm,
    ),
)

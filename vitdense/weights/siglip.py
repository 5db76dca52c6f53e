"""SigLIP and SigLIP 2's picture towers (https://arxiv.org/abs/2303.15343, https://arxiv.org/abs/2502.14786).

As big_vision, timm and transformers name them; networks for pictures of any shape ("NaFlex") have their patches cut
out before the first layer, which makes that a linear one.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.weights.clip import ENCODER, vision_of
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, Export, State
from vitdense.weights.facts import (
    ANTIALIASED,
    BICUBIC,
    BILINEAR,
    HALF,
    timm_epsilon,
    timm_facts,
    transformers_facts,
    transformers_preprocessor,
)
from vitdense.weights.rows import Change, Row
from vitdense.weights.vit import JAX, jax_bias_of_heads, jax_conv, jax_from_heads, jax_linear, jax_to_heads
from vitdense.weights.vit_files import position_notes, transformers_activation

# ---------------------------------------------------------------- tables


def _convolution(weight: Tensor) -> Tensor:
    """weight: (C, p * p * 3) of a linear layer on patches, channels last -> (C, 3, p, p); others stay."""
    if weight.ndim == 4:
        return weight
    side = math.isqrt(weight.shape[1] // 3)
    return torch.unflatten(weight, 1, (side, side, 3)).permute(0, 3, 1, 2)


def _sequence(table: Tensor) -> Tensor:
    """table: (1, h, w, C) or (h, w, C) -> (1, h * w, C); others stay."""
    return table.reshape(1, -1, table.shape[-1])


_patches = Change(_convolution, lambda kernel: kernel)
_positions = Change(_sequence)

TRANSFORMERS = (
    Row("embeddings.patch_embedding.weight", "patch_embed.proj.weight", change=_patches),
    Row("embeddings.patch_embedding.bias", "patch_embed.proj.bias"),
    *ENCODER,
    Row("head.probe", "attn_pool.latent"),
    Row("head.attention.in_proj_*", "attn_pool.q.*", cut=(0, 1, 3)),
    Row("head.attention.in_proj_*", "attn_pool.kv.*", cut=(1, 3, 3)),
    Row("head.attention.out_proj.*", "attn_pool.proj.*"),
    Row("head.layernorm.*", "attn_pool.norm.*"),
    Row("head.mlp.*", "attn_pool.mlp.*"),
)

TIMM = (Row("*", "*"),)
NAFLEX = (
    Row("embeds.proj.weight", "patch_embed.proj.weight", change=_patches),
    Row("embeds.proj.bias", "patch_embed.proj.bias"),
    Row("embeds.pos_embed", "pos_embed", change=_positions),
    Row("*", "*"),
)

_POOL = "MAPHead_0"
_MHA, _MLP = f"{_POOL}/MultiHeadDotProductAttention_0", f"{_POOL}/MlpBlock_0"
BIG_VISION = (
    Row(
        "embedding/kernel",
        "patch_embed.proj.weight",
        change=Change(lambda kernel: _convolution(kernel.mT) if kernel.ndim == 2 else jax_conv.into(kernel)),
    ),
    Row("pos_embedding", "pos_embed", change=_positions),
    Row(f"{_POOL}/probe", "attn_pool.latent"),
    Row(f"{_MHA}/query/kernel", "attn_pool.q.weight", change=jax_to_heads),
    Row(f"{_MHA}/query/bias", "attn_pool.q.bias", change=jax_bias_of_heads),
    Row(f"{_MHA}/key/kernel", "attn_pool.kv.weight", part=(0, 2), change=jax_to_heads),
    Row(f"{_MHA}/key/bias", "attn_pool.kv.bias", part=(0, 2), change=jax_bias_of_heads),
    Row(f"{_MHA}/value/kernel", "attn_pool.kv.weight", part=(1, 2), change=jax_to_heads),
    Row(f"{_MHA}/value/bias", "attn_pool.kv.bias", part=(1, 2), change=jax_bias_of_heads),
    Row(f"{_MHA}/out/kernel", "attn_pool.proj.weight", change=jax_from_heads),
    Row(f"{_MHA}/out/bias", "attn_pool.proj.bias"),
    Row(f"{_POOL}/LayerNorm_0/scale", "attn_pool.norm.weight"),
    Row(f"{_POOL}/LayerNorm_0/bias", "attn_pool.norm.bias"),
    Row(_MLP + "/Dense_{j}/kernel", "attn_pool.mlp.fc{j+1}.weight", change=jax_linear),
    Row(_MLP + "/Dense_{j}/bias", "attn_pool.mlp.fc{j+1}.bias"),
    *JAX,
)

# ---------------------------------------------------------------- options


def _for_any_shape(checkpoint: Checkpoint, kernel: str) -> bool:
    return any(key.endswith(kernel) and tensor.ndim == 2 for key, tensor in checkpoint.state.items())


def _transformers(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    facts = transformers_facts(vision_of(checkpoint), layer_norm_eps=1e-6, activation="gelu_pytorch_tanh")
    positions = BILINEAR if _for_any_shape(checkpoint, "embeddings.patch_embedding.weight") else BICUBIC
    return {**facts, **positions, "pool": "attention" if "attn_pool.latent" in state else "mean"}


def _big_vision(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    positions = BILINEAR if _for_any_shape(checkpoint, "embedding/kernel") else ANTIALIASED
    return {"layer_norm_eps": 1e-6, "activation": "gelu_tanh", **positions, **HALF}


def _timm(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    trained = {"activation": _timms_activation(state), **ANTIALIASED, **timm_facts(checkpoint)}
    return trained | timm_epsilon(checkpoint, otherwise=1e-6)


def _naflex(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-6, "activation": "gelu_tanh", **BILINEAR, **timm_facts(checkpoint)}


def _timms_activation(state: State) -> str:
    """timm computes SigLIP with the exact GELU, and only the sizes that came with SigLIP 2 as they were trained."""
    (_, cells, width), patch = state["pos_embed"].shape, state["patch_embed.proj.weight"].shape[-1]
    came_with_2 = patch == 32 or (patch == 16 and (width > 1024 or (width, cells) == (1024, 32 * 32)))
    return "gelu_tanh" if came_with_2 else "gelu"


# ---------------------------------------------------------------- and back

_SAYS = frozenset({"embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "image_size", "activation"})
_FIXED = {"cls_token": False, "pool": "attention"}


def _transformers_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    config = {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
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
    processor = transformers_preprocessor(backbone, kind="SiglipImageProcessor", size=options["image_size"])
    return {"config.json": config, "preprocessor_config.json": processor}


_TO_TRANSFORMERS = Export(
    _transformers_files,
    says=_SAYS | {"layer_norm_eps"},
    fixed=_FIXED,
    notes=lambda options: position_notes(options, antialias=False),
)

# ---------------------------------------------------------------- dialects

DIALECTS = (
    Dialect(
        "big_vision",
        "siglip",
        "vit",
        has=("embedding/kernel", "Transformer/encoderblock_{i}/LayerNorm_0/scale", f"{_POOL}/probe"),
        table=BIG_VISION,
        options=_big_vision,
    ),
    Dialect(
        "transformers",
        "siglip",
        "vit",
        has=("embeddings.patch_embedding.weight", "encoder.layers.{i}.layer_norm1.weight", "post_layernorm.weight"),
        lacks=("embeddings.class_embedding", "pre_layrnorm.weight"),
        table=TRANSFORMERS,
        left_out=("embeddings.position_ids",),
        options=_transformers,
        export=_TO_TRANSFORMERS,
    ),
    Dialect(
        "timm",
        "siglip",
        "vit",
        has=("patch_embed.proj.weight", "attn_pool.latent", "blocks.{i}.attn.qkv.weight"),
        lacks=("cls_token", "reg_token"),
        table=TIMM,
        left_out=("head.*",),
        options=_timm,
    ),
    Dialect(
        "timm",
        "siglip for any shape",
        "vit",
        has=("embeds.proj.weight", "attn_pool.latent", "blocks.{i}.attn.qkv.weight"),
        table=NAFLEX,
        left_out=("head.*",),
        options=_naflex,
    ),
)

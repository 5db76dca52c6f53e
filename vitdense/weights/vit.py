"""Plain vision transformers: ViT and AugReg, DeiT, DeiT III, MAE and DINO, as each publisher names them."""

from typing import Any

import torch

from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, State
from vitdense.weights.facts import HALF, IMAGENET, timm_facts, transformers_facts
from vitdense.weights.rows import Change, Row
from vitdense.weights.video import vivit_facts
from vitdense.weights.vit_files import TIMM_DEIT, TIMM_VIT, TRANSFORMERS_DEIT, TRANSFORMERS_VIT

# ---------------------------------------------------------------- tables

TIMM = (
    # DeiT III's own checkpoints have gamma_1 and gamma_2.
    Row(("blocks.{i}.ls{j}.gamma", "blocks.{i}.gamma_{j}"), "blocks.{i}.ls{j}.gamma"),
    Row("*", "*"),
)

# Files have the names of version 4, models in memory those of version 5.
TRANSFORMERS = (
    Row("embeddings.cls_token", "cls_token"),
    Row("embeddings.distillation_token", "dist_token"),
    Row("embeddings.position_embeddings", "pos_embed"),
    Row("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    Row(("encoder.layer.{i}.layernorm_before.*", "layers.{i}.layernorm_before.*"), "blocks.{i}.norm1.*"),
    Row(
        ("encoder.layer.{i}.attention.attention.query.*", "layers.{i}.attention.q_proj.*"),
        "blocks.{i}.attn.qkv.*",
        part=(0, 3),
    ),
    Row(
        ("encoder.layer.{i}.attention.attention.key.*", "layers.{i}.attention.k_proj.*"),
        "blocks.{i}.attn.qkv.*",
        part=(1, 3),
    ),
    Row(
        ("encoder.layer.{i}.attention.attention.value.*", "layers.{i}.attention.v_proj.*"),
        "blocks.{i}.attn.qkv.*",
        part=(2, 3),
    ),
    Row(("encoder.layer.{i}.attention.output.dense.*", "layers.{i}.attention.o_proj.*"), "blocks.{i}.attn.proj.*"),
    Row(("encoder.layer.{i}.layernorm_after.*", "layers.{i}.layernorm_after.*"), "blocks.{i}.norm2.*"),
    Row(("encoder.layer.{i}.intermediate.dense.*", "layers.{i}.mlp.fc1.*"), "blocks.{i}.mlp.fc1.*"),
    Row(("encoder.layer.{i}.output.dense.*", "layers.{i}.mlp.fc2.*"), "blocks.{i}.mlp.fc2.*"),
    Row("layernorm.*", "norm.*"),
)

_LAYER = "encoder.layers.encoder_layer_{i}"
TORCHVISION = (
    Row("class_token", "cls_token"),
    Row("encoder.pos_embedding", "pos_embed"),
    Row("conv_proj.*", "patch_embed.proj.*"),
    Row(_LAYER + ".ln_{j}.*", "blocks.{i}.norm{j}.*"),
    Row(_LAYER + ".self_attention.in_proj_*", "blocks.{i}.attn.qkv.*"),
    Row(_LAYER + ".self_attention.out_proj.*", "blocks.{i}.attn.proj.*"),
    Row((_LAYER + ".mlp.0.*", _LAYER + ".mlp.linear_1.*"), "blocks.{i}.mlp.fc1.*"),
    Row((_LAYER + ".mlp.3.*", _LAYER + ".mlp.linear_2.*"), "blocks.{i}.mlp.fc2.*"),
    Row("encoder.ln.*", "norm.*"),
)

# JAX keeps kernels as (in, out), with the heads apart: (in, heads, d) for q, k and v, (heads, d, out) behind them.
jax_conv = Change(lambda kernel: kernel.permute(3, 2, 0, 1))
jax_linear = Change(lambda kernel: kernel.mT)
jax_to_heads = Change(lambda kernel: kernel.flatten(1).mT)
jax_from_heads = Change(lambda kernel: kernel.flatten(0, 1).mT)
jax_bias_of_heads = Change(torch.Tensor.flatten)


def _attention(name: str, k: int) -> tuple[Row, Row]:
    """The rows of q, k or v, as the first release and as big_vision have them."""
    keys = tuple(f"{_BLOCK}/MultiHeadDotProductAttention_{n}/{name}" for n in (1, 0))
    qkv = "blocks.{i}.attn.qkv"
    return (
        Row(tuple(f"{key}/kernel" for key in keys), f"{qkv}.weight", part=(k, 3), change=jax_to_heads),
        Row(tuple(f"{key}/bias" for key in keys), f"{qkv}.bias", part=(k, 3), change=jax_bias_of_heads),
    )


_BLOCK = "Transformer/encoderblock_{i}"
_OUT = tuple(f"{_BLOCK}/MultiHeadDotProductAttention_{n}/out" for n in (1, 0))
_MLP = tuple(f"{_BLOCK}/MlpBlock_{n}/Dense_" for n in (3, 0))
JAX = (
    Row("cls", "cls_token"),
    Row(("Transformer/posembed_input/pos_embedding", "pos_embedding"), "pos_embed"),
    Row("embedding/kernel", "patch_embed.proj.weight", change=jax_conv),
    Row("embedding/bias", "patch_embed.proj.bias"),
    Row(f"{_BLOCK}/LayerNorm_0/scale", "blocks.{i}.norm1.weight"),
    Row(f"{_BLOCK}/LayerNorm_0/bias", "blocks.{i}.norm1.bias"),
    *(row for k, name in enumerate(("query", "key", "value")) for row in _attention(name, k)),
    Row(tuple(f"{key}/kernel" for key in _OUT), "blocks.{i}.attn.proj.weight", change=jax_from_heads),
    Row(tuple(f"{key}/bias" for key in _OUT), "blocks.{i}.attn.proj.bias"),
    Row((f"{_BLOCK}/LayerNorm_2/scale", f"{_BLOCK}/LayerNorm_1/scale"), "blocks.{i}.norm2.weight"),
    Row((f"{_BLOCK}/LayerNorm_2/bias", f"{_BLOCK}/LayerNorm_1/bias"), "blocks.{i}.norm2.bias"),
    Row(tuple(key + "{j}/kernel" for key in _MLP), "blocks.{i}.mlp.fc{j+1}.weight", change=jax_linear),
    Row(tuple(key + "{j}/bias" for key in _MLP), "blocks.{i}.mlp.fc{j+1}.bias"),
    Row("Transformer/encoder_norm/scale", "norm.weight"),
    Row("Transformer/encoder_norm/bias", "norm.bias"),
)

# ---------------------------------------------------------------- options


def _timm(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    # What is left of a DINO or MAE training saw ImageNet's statistics.
    tells = ("head.last_layer.weight_g", "decoder_pred.weight")
    imagenet = any(key.endswith(tells) for key in checkpoint.state)
    return {**(IMAGENET if imagenet else {}), **timm_facts(checkpoint)}


def _deit(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    return {**IMAGENET, **timm_facts(checkpoint)}


def _transformers(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    if state["patch_embed.proj.weight"].ndim == 5:
        return vivit_facts(checkpoint)
    facts = transformers_facts(checkpoint, layer_norm_eps=1e-12)
    # DPT, whose neck stands beside the backbone, resizes positions in another way than ViT.
    depth = any(key.startswith("neck.reassemble_stage.") for key in checkpoint.state)
    return {**facts, "position_interpolation": "bilinear" if depth else "bicubic", "position_antialias": False}


def _torchvision(_: Checkpoint, __: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-6, **IMAGENET}


def _jax(_: Checkpoint, __: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-6, **HALF}


# ---------------------------------------------------------------- dialects

_PATCHES = "embeddings.patch_embeddings.projection.weight"
_NORM = ("encoder.layer.{i}.layernorm_before.weight", "layers.{i}.layernorm_before.weight")
_LEFT_OUT = ("classifier.*", "pooler.*", "decoder.*", "embeddings.mask_token")
_HEADS = ("head.*", "head_dist.*", "pre_logits.*", "decoder*", "mask_token")

DIALECTS = (
    Dialect(
        "transformers",
        "deit",
        "vit",
        has=(_PATCHES, _NORM, "embeddings.distillation_token"),
        table=TRANSFORMERS,
        left_out=(*_LEFT_OUT, "cls_classifier.*", "distillation_classifier.*"),
        options=_transformers,
        export=TRANSFORMERS_DEIT,
    ),
    Dialect(
        "transformers",
        "vit",
        "vit",
        has=(_PATCHES, _NORM),
        lacks=(("encoder.layer.{i}.lambda_1", "layers.{i}.lambda_1"),),  # BEiT's layer scale
        table=TRANSFORMERS,
        left_out=_LEFT_OUT,
        options=_transformers,
        export=TRANSFORMERS_VIT,
    ),
    Dialect(
        "torchvision",
        "vit",
        "vit",
        has=("conv_proj.weight", _LAYER + ".self_attention.in_proj_weight"),
        table=TORCHVISION,
        left_out=("heads.*",),
        options=_torchvision,
    ),
    Dialect(
        "jax",
        "vit",
        "vit",
        has=("embedding/kernel", f"{_BLOCK}/LayerNorm_0/scale"),
        table=JAX,
        left_out=("head/*", "pre_logits/*"),
        options=_jax,
    ),
    Dialect(
        "timm",
        "deit",
        "vit",
        has=("patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight", "dist_token"),
        table=TIMM,
        left_out=_HEADS,
        options=_deit,
        export=TIMM_DEIT,
    ),
    Dialect(
        "timm",
        "vit",
        "vit",
        has=("patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight"),
        table=TIMM,
        left_out=_HEADS,
        options=_timm,
        export=TIMM_VIT,
    ),
)

"""Plain vision transformers: ViT and AugReg, DeiT, DeiT III, MAE and DINO, as each publisher names them."""

from typing import Any

import torch
from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, Export, State
from vitdense.weights.facts import (
    HALF,
    IMAGENET,
    timm_facts,
    timm_record,
    transformers_facts,
    transformers_preprocessor,
)
from vitdense.weights.rows import Change, Row

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


def _timm(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    # All that have a distillation token, and what is left of a DINO or MAE training, saw ImageNet's statistics.
    tells = ("head.last_layer.weight_g", "decoder_pred.weight")
    imagenet = "dist_token" in state or any(key.endswith(tells) for key in checkpoint.state)
    return {**(IMAGENET if imagenet else {}), **timm_facts(checkpoint)}


def _transformers(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    facts = transformers_facts(checkpoint, layer_norm_eps=1e-12)
    return {**facts, "position_interpolation": "bicubic", "position_antialias": False}


def _torchvision(_: Checkpoint, __: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-6, **IMAGENET}


def _jax(_: Checkpoint, __: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-6, **HALF}


# ---------------------------------------------------------------- and back

_SHAPE = frozenset({"embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "image_size", "qkv_bias", "pool"})
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}


def _timm_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    distilled = options.get("dist_token", False)
    size = _SIZES.get(options["embed_dim"], "base")
    arguments = {
        "img_size": options["image_size"],
        "patch_size": options["patch_size"],
        "embed_dim": options["embed_dim"],
        "depth": options["depth"],
        "num_heads": options["num_heads"],
        "mlp_ratio": options["mlp_ratio"],
        "qkv_bias": options["qkv_bias"],
        "init_values": options["layer_scale"],
        "dynamic_img_size": True,
        "dynamic_img_pad": True,
    }
    if not distilled:
        arguments |= {
            "class_token": options["cls_token"],
            "reg_tokens": options["num_registers"],
            "global_pool": "avg" if options["pool"] == "mean" else "token",
            "fc_norm": False,
        }
    record = timm_record(
        backbone,
        architecture="deit_base_distilled_patch16_224" if distilled else f"vit_{size}_patch16_224",
        model_args=arguments,
        size=options["image_size"],
        classifier="head",
    )
    return {"config.json": record}


def rows_for_registers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's table has a row for every token before the patches; ours for registers are zero."""
    if "reg_token" not in state:
        return state
    table, rows = state["pos_embed"], torch.zeros_like(state["reg_token"])
    slots = int("cls_token" in state)
    return {**state, "pos_embed": torch.cat([table[:, :slots], rows, table[:, slots:]], dim=1)}


def _transformers_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    kind = "DeiT" if options.get("dist_token", False) else "ViT"
    config = {
        "architectures": [f"{kind}Model"],
        "model_type": kind.lower(),
        "hidden_size": options["embed_dim"],
        "num_hidden_layers": options["depth"],
        "num_attention_heads": options["num_heads"],
        "intermediate_size": int(options["embed_dim"] * options["mlp_ratio"]),
        "hidden_act": options.get("activation", "gelu"),
        "layer_norm_eps": options["layer_norm_eps"],
        "image_size": options["image_size"],
        "patch_size": options["patch_size"],
        "num_channels": len(backbone.mean),
        "qkv_bias": options["qkv_bias"],
        "torch_dtype": "float32",
    }
    processor = transformers_preprocessor(backbone, kind=f"{kind}ImageProcessor", size=options["image_size"])
    return {"config.json": config, "preprocessor_config.json": processor}


def _notes(options: dict[str, Any], *, antialias: bool) -> list[str]:
    if (options["position_interpolation"], options["position_antialias"]) == ("bicubic", antialias):
        return []
    return [f"positions are resized in another way there, for pictures of another size than {options['image_size']}"]


def _timm_notes(options: dict[str, Any]) -> list[str]:
    return _notes(options, antialias=True)


def _transformers_notes(options: dict[str, Any]) -> list[str]:
    means = ["embed() is the mean of the patches, which nothing there computes"] if options["pool"] == "mean" else []
    return _notes(options, antialias=False) + means


_TIMM = Export(
    _timm_files,
    says=_SHAPE | {"cls_token", "dist_token", "num_registers", "layer_scale", "position_antialias"},
    fixed={"layer_norm_eps": 1e-6},
    finish=rows_for_registers,
    notes=_timm_notes,
)
_TRANSFORMERS = Export(
    _transformers_files,
    says=_SHAPE | {"dist_token", "layer_norm_eps", "activation", "position_antialias"},
    notes=_transformers_notes,
)

# ---------------------------------------------------------------- dialects

DIALECTS = (
    Dialect(
        "transformers",
        "vit",
        "vit",
        has=(
            "embeddings.patch_embeddings.projection.weight",
            ("encoder.layer.{i}.layernorm_before.weight", "layers.{i}.layernorm_before.weight"),
        ),
        lacks=("encoder.layer.{i}.lambda_1", "layers.{i}.lambda_1"),
        table=TRANSFORMERS,
        left_out=("classifier.*", "pooler.*", "decoder.*", "embeddings.mask_token"),
        options=_transformers,
        export=_TRANSFORMERS,
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
        "vit",
        "vit",
        has=("patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight"),
        table=TIMM,
        left_out=("head.*", "head_dist.*", "fc_norm.*", "pre_logits.*", "decoder*", "mask_token"),
        options=_timm,
        export=_TIMM,
    ),
)

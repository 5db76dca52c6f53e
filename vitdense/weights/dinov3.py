"""DINOv3 (https://arxiv.org/abs/2508.10104), as its authors, timm and transformers name it."""

from typing import Any

import torch
from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.errors import WeightsError
from vitdense.layers.rotary import unit_periods
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, Export, State
from vitdense.weights.facts import (
    IMAGENET,
    timm_facts,
    timm_record,
    transformers_facts,
    transformers_preprocessor,
)
from vitdense.weights.rows import Row
from vitdense.weights.vit_files import transformers_activation

# Statistics of the pictures that the models for satellites were trained on, "sat493m" in their files' names.
SATELLITE = {"mean": (0.43, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}

# ---------------------------------------------------------------- tables

_MLP, _LAYER = "blocks.{i}.mlp", ("layer.{i}", "model.layer.{i}")

OFFICIAL = (
    Row("storage_tokens", "reg_token"),
    Row("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.q_bias", cut=(0, 1, 3)),
    Row("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.v_bias", cut=(2, 3, 3)),
    Row(_MLP + ".w1.*", _MLP + ".fc1.*", part=(0, 2)),
    Row(_MLP + ".w2.*", _MLP + ".fc1.*", part=(1, 2)),
    Row(_MLP + ".w3.*", _MLP + ".fc2.*"),
    Row("*", "*"),
)

TIMM_PLAIN = (
    Row("blocks.{i}.gamma_{j}", "blocks.{i}.ls{j}.gamma"),
    Row("*", "*"),
)
TIMM_GATED = (
    Row(_MLP + ".fc1_g.*", _MLP + ".fc1.*", part=(0, 2)),
    Row(_MLP + ".fc1_x.*", _MLP + ".fc1.*", part=(1, 2)),
    *TIMM_PLAIN,
)


def _both(rest: str) -> tuple[str, ...]:
    """A layer's key as files have it, and as models in memory do."""
    return tuple(f"{layer}.{rest}" for layer in _LAYER)


_SHARED = (
    Row("embeddings.cls_token", "cls_token"),
    Row("embeddings.register_tokens", "reg_token"),
    Row("embeddings.mask_token", "mask_token"),
    Row("embeddings.patch_embeddings.*", "patch_embed.proj.*"),
    Row(_both("norm{j}.*"), "blocks.{i}.norm{j}.*"),
    Row(_both("attention.q_proj.weight"), "blocks.{i}.attn.qkv.weight", part=(0, 3)),
    Row(_both("attention.k_proj.weight"), "blocks.{i}.attn.qkv.weight", part=(1, 3)),
    Row(_both("attention.v_proj.weight"), "blocks.{i}.attn.qkv.weight", part=(2, 3)),
    Row(_both("attention.q_proj.bias"), "blocks.{i}.attn.q_bias"),
    Row(_both("attention.v_proj.bias"), "blocks.{i}.attn.v_bias"),
    Row(_both("attention.o_proj.*"), "blocks.{i}.attn.proj.*"),
    Row(_both("layer_scale{j}.lambda1"), "blocks.{i}.ls{j}.gamma"),
    Row(_both("mlp.down_proj.*"), "blocks.{i}.mlp.fc2.*"),
    Row("norm.*", "norm.*"),
)
PLAIN = (*_SHARED, Row(_both("mlp.up_proj.*"), "blocks.{i}.mlp.fc1.*"))
GATED = (
    *_SHARED,
    Row(_both("mlp.gate_proj.*"), "blocks.{i}.mlp.fc1.*", part=(0, 2)),
    Row(_both("mlp.up_proj.*"), "blocks.{i}.mlp.fc1.*", part=(1, 2)),
)


def _masked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors mask out the keys' third of each bias, for which there is no place here; the mask is applied."""
    masked = {key: tensor for key, tensor in state.items() if not key.endswith(".bias_mask")}
    for key in [key for key in masked if key.endswith(".qkv.bias")]:
        masked[key] = masked[key] * state.get(f"{key}_mask", torch.ones(()))
        if masked[key].chunk(3)[1].any():
            raise WeightsError(f"{key} is not zero for the keys, as it is masked to be in DINOv3")
    return masked


# ---------------------------------------------------------------- options


def _official(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    statistics = SATELLITE if "sat493m" in checkpoint.source.lower() else IMAGENET
    return {"layer_norm_eps": 1e-5, **statistics, **_periods(checkpoint)}


def _periods(checkpoint: Checkpoint) -> dict[str, Any]:
    """The authors' numbers are those of the periods that they store, and these were rounded to bfloat16."""
    stored = next((each for key, each in checkpoint.state.items() if key.endswith("rope_embed.periods")), None)
    if stored is None:
        return {}
    stored = stored.float()
    computed = unit_periods(4 * stored.numel(), stored.device)
    if not torch.allclose(stored, computed, rtol=2**-8, atol=0.0):
        raise WeightsError(f"{checkpoint.source} has rotary periods that are not DINOv3's: {stored.tolist()[:4]}, ...")
    return {"rope_periods": None if torch.equal(stored, computed) else tuple(stored.tolist())}


def _timm(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-5, "rope_periods": None, **IMAGENET, **timm_facts(checkpoint)}


def _transformers(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    return {"rope_periods": None, **transformers_facts(checkpoint, layer_norm_eps=1e-5, activation=None)}


# ---------------------------------------------------------------- and back

_SAYS = frozenset({"embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "image_size", "rope_periods"})
_NEEDS = frozenset({"layer_scale", "num_registers"})
_FIXED = {
    "positions": "none",
    "relations": "rope_unit",
    "layer_norm_eps": 1e-5,
    "qkv_bias": frozenset({"qv", False}),
}
_GATE = {"mlp": "gated", "activation": "silu"}


def _timm_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    arguments = {
        "img_size": options["image_size"],
        "patch_size": options["patch_size"],
        "embed_dim": options["embed_dim"],
        "depth": options["depth"],
        "num_heads": options["num_heads"],
        "mlp_ratio": options["mlp_ratio"],
        "qkv_bias": options["qkv_bias"] == "qv",
        "init_values": options["layer_scale"],
        "num_reg_tokens": options["num_registers"],
        "swiglu_mlp": options["mlp"] == "gated",
        "swiglu_align_to": 1,
        "global_pool": "avg" if options["pool"] == "mean" else "token",
        "dynamic_img_pad": True,
    }
    record = timm_record(
        backbone,
        architecture="vit_small_patch16_dinov3",
        model_args=arguments,
        size=options["image_size"],
        classifier="head",
    )
    return {"config.json": record}


def _transformers_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    biased = options["qkv_bias"] == "qv"
    config = {
        "architectures": ["DINOv3ViTModel"],
        "model_type": "dinov3_vit",
        "hidden_size": options["embed_dim"],
        "num_hidden_layers": options["depth"],
        "num_attention_heads": options["num_heads"],
        "intermediate_size": int(options["embed_dim"] * options["mlp_ratio"]),
        "hidden_act": transformers_activation(options["activation"]),
        "use_gated_mlp": options["mlp"] == "gated",
        "layer_norm_eps": options["layer_norm_eps"],
        "image_size": options["image_size"],
        "patch_size": options["patch_size"],
        "num_channels": len(backbone.mean),
        "query_bias": biased,
        "key_bias": False,
        "value_bias": biased,
        "num_register_tokens": options["num_registers"],
        "layerscale_value": options["layer_scale"],
        "apply_layernorm": options["norm_maps"],
        "rope_theta": 100.0,
        "torch_dtype": "float32",
    }
    processor = transformers_preprocessor(backbone, kind="DINOv3ViTImageProcessor", size=options["image_size"])
    return {"config.json": config, "preprocessor_config.json": processor}


def _with_mask_token(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' networks have a token for masked patches: zeros, as before any training."""
    return {**state, "mask_token": torch.zeros_like(state["cls_token"])}


def _notes(options: dict[str, Any]) -> list[str]:
    return [] if options["rope_periods"] is None else ["rotary periods are not rounded to bfloat16 there"]


def _to_timm(*, gated: bool) -> Export:
    return Export(
        _timm_files, says=_SAYS | {"pool"}, needs=_NEEDS, fixed={**_FIXED, **(_GATE if gated else {})}, notes=_notes
    )


def _to_transformers(*, gated: bool) -> Export:
    return Export(
        _transformers_files,
        says=_SAYS | {"activation", "layer_norm_eps"},
        needs=_NEEDS,
        fixed={**_FIXED, "mlp": "gated" if gated else "plain"},
        finish=_with_mask_token,
        notes=_notes,
    )


# ---------------------------------------------------------------- dialects

_TIMM = ("reg_token", "blocks.{i}.gamma_1", "blocks.{i}.attn.qkv.weight", "patch_embed.proj.weight")
_NOT_TIMM = ("pos_embed", "fc_norm.weight")
_TRANSFORMERS = ("embeddings.patch_embeddings.weight", _both("layer_scale1.lambda1"))

DIALECTS = (
    Dialect(
        "official",
        "dinov3",
        "vit",
        has=("storage_tokens", "blocks.{i}.ls1.gamma", "blocks.{i}.attn.qkv.weight"),
        table=OFFICIAL,
        left_out=("mask_token", "local_cls_norm.*", "rope_embed.*", "head.*", "projectors.*"),
        prepare=_masked,
        options=_official,
    ),
    Dialect(
        "timm",
        "gated dinov3",
        "vit",
        has=(*_TIMM, _MLP + ".fc1_g.weight"),
        lacks=_NOT_TIMM,
        table=TIMM_GATED,
        left_out=("head.*",),
        options=_timm,
        export=_to_timm(gated=True),
    ),
    Dialect(
        "timm",
        "dinov3",
        "vit",
        has=_TIMM,
        lacks=_NOT_TIMM,
        table=TIMM_PLAIN,
        left_out=("head.*",),
        options=_timm,
        export=_to_timm(gated=False),
    ),
    Dialect(
        "transformers",
        "gated dinov3",
        "vit",
        has=(*_TRANSFORMERS, _both("mlp.gate_proj.weight")),
        table=GATED,
        left_out=("classifier.*", "embeddings.mask_token"),
        options=_transformers,
        export=_to_transformers(gated=True),
    ),
    Dialect(
        "transformers",
        "dinov3",
        "vit",
        has=_TRANSFORMERS,
        table=PLAIN,
        left_out=("classifier.*", "embeddings.mask_token"),
        options=_transformers,
        export=_to_transformers(gated=False),
    ),
)

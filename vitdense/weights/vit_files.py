"""How plain vision transformers are said in timm's terms and in transformers': their config files, and their limits."""

import math
from typing import Any

import torch
from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.weights.dialect import Export
from vitdense.weights.facts import ACTIVATIONS, timm_record, transformers_preprocessor

Files = dict[str, dict[str, Any]]

_SHAPE = frozenset({"embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "image_size", "qkv_bias"})
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
_POOLS = {"cls": "token", "cls_dist": "token", "mean": "avg", "attention": "map"}

# ---------------------------------------------------------------- timm


def _timm_shape(options: dict[str, Any]) -> dict[str, Any]:
    """What timm's networks of any kind are told."""
    return {
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


def _timm_files(backbone: Backbone, options: dict[str, Any]) -> Files:
    arguments = _timm_shape(options) | {
        "class_token": options["cls_token"],
        "reg_tokens": options["num_registers"],
        "pos_embed": "learn" if options["positions"] == "learned" else "none",
        "pre_norm": options["pre_norm"],
        "final_norm": options["final_norm"] != "none",
        "fc_norm": options["final_norm"] == "pooled",
        "global_pool": _POOLS[options["pool"]],
        "act_layer": options["activation"],
    }
    if options["mlp"] == "gated":
        # timm counts gate and value together.
        hidden = 2 * int(options["embed_dim"] * options["mlp_ratio"])
        arguments["mlp_ratio"] = math.nextafter(hidden / options["embed_dim"], math.inf)
    return {"config.json": _record(backbone, options, _architecture(options), arguments)}


def _architecture(options: dict[str, Any]) -> str:
    """A name of timm's whose network has what can't be told: the gated MLP, and the epsilon of norms."""
    if options["mlp"] == "gated":
        return "vit_giant_patch14_dinov2"
    if options["layer_norm_eps"] == 1e-5:
        return "vit_base_patch16_clip_224"
    return f"vit_{_SIZES.get(options['embed_dim'], 'base')}_patch16_224"


def _timm_refuses(options: dict[str, Any]) -> list[str]:
    found = []
    if options["patch_bias"] == options["pre_norm"]:
        found.append("has a bias in the patch embedding (patch_bias) where there is no pre_norm, and there alone")
    known = (1e-6,) if options["mlp"] == "gated" else (1e-6, 1e-5)
    if options["layer_norm_eps"] not in known:
        found.append(f"has layer_norm_eps {' or '.join(map(str, known))}, and here it is {options['layer_norm_eps']}")
    if options["mlp"] == "gated" and options["activation"] != "silu":
        found.append(f"has the activation silu in its gated MLP, and here it is {options['activation']}")
    if options["positions"] == "sincos":
        found.append("has no sincos positions: positions must be learned or none")
    return found


def _deit_files(backbone: Backbone, options: dict[str, Any]) -> Files:
    return {"config.json": _record(backbone, options, "deit_base_distilled_patch16_224", _timm_shape(options))}


def _record(backbone: Backbone, options: dict[str, Any], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return timm_record(backbone, architecture=name, model_args=arguments, size=options["image_size"], classifier="head")


def rows_for_registers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's table has a row for every token before the patches; ours for registers are zero."""
    if "reg_token" not in state or "pos_embed" not in state:
        return state
    table, rows = state["pos_embed"], torch.zeros_like(state["reg_token"])
    slots = int("cls_token" in state)
    return {**state, "pos_embed": torch.cat([table[:, :slots], rows, table[:, slots:]], dim=1)}


# ---------------------------------------------------------------- transformers


def _transformers_files(kind: str) -> Any:
    def files(backbone: Backbone, options: dict[str, Any]) -> Files:
        config = {
            "architectures": [f"{kind}Model"],
            "model_type": kind.lower(),
            "hidden_size": options["embed_dim"],
            "num_hidden_layers": options["depth"],
            "num_attention_heads": options["num_heads"],
            "intermediate_size": int(options["embed_dim"] * options["mlp_ratio"]),
            "hidden_act": transformers_activation(options["activation"]),
            "layer_norm_eps": options["layer_norm_eps"],
            "image_size": options["image_size"],
            "patch_size": options["patch_size"],
            "num_channels": len(backbone.mean),
            "qkv_bias": options["qkv_bias"],
            "torch_dtype": "float32",
        }
        # DeiT's own would crop pictures first.
        processor = transformers_preprocessor(backbone, kind="ViTImageProcessor", size=options["image_size"])
        return {"config.json": config, "preprocessor_config.json": processor}

    return files


def transformers_activation(ours: str) -> str:
    """The name of one of our activations there."""
    return "gelu_pytorch_tanh" if ours == "gelu_tanh" else next(t for t, o in ACTIVATIONS.items() if o == ours)


# ---------------------------------------------------------------- what differs all the same


def position_notes(options: dict[str, Any], *, antialias: bool) -> list[str]:
    """How position tables are resized there, if that isn't how they are here."""
    ours = (options["position_interpolation"], options["position_antialias"], options["position_offset"])
    if options["positions"] == "none" or ours == ("bicubic", antialias, 0.0):
        return []
    return [f"positions are resized in another way there, for pictures of another size than {options['image_size']}"]


def _timm_notes(options: dict[str, Any]) -> list[str]:
    return position_notes(options, antialias=True)


def _transformers_notes(options: dict[str, Any]) -> list[str]:
    means = [] if options["pool"] == "cls" else [f"embed() pools by {options['pool']!r}, which nothing there does"]
    return position_notes(options, antialias=False) + means


_TOKENS = {"cls_token", "num_registers", "pool", "final_norm", "positions"}
_LAYERS = {"layer_norm_eps", "layer_scale", "activation", "mlp", "pre_norm", "patch_bias"}
TIMM_VIT = Export(
    _timm_files,
    says=_SHAPE | _TOKENS | _LAYERS,
    refuses=_timm_refuses,
    finish=rows_for_registers,
    notes=_timm_notes,
)
TIMM_DEIT = Export(
    _deit_files,
    says=_SHAPE | {"layer_scale"},
    fixed={"dist_token": True, "pool": "cls_dist"},
    notes=_timm_notes,
)
TRANSFORMERS_VIT = Export(
    _transformers_files("ViT"),
    says=_SHAPE | {"layer_norm_eps", "activation", "pool"},
    notes=_transformers_notes,
)
TRANSFORMERS_DEIT = Export(
    _transformers_files("DeiT"),
    says=_SHAPE | {"layer_norm_eps", "activation", "pool"},
    fixed={"dist_token": True},
    notes=_transformers_notes,
)

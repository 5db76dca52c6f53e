"""EVA-02 and EVA-02's CLIP (https://arxiv.org/abs/2303.11331), as their authors and timm name them."""

from typing import Any

from vitdense.contracts import Backbone
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, Export, State
from vitdense.weights.facts import ANTIALIASED, timm_facts, timm_record
from vitdense.weights.rows import Row

# ---------------------------------------------------------------- tables

_ATTENTION, _MLP = "blocks.{i}.attn", "blocks.{i}.mlp"
_QKV = f"{_ATTENTION}.qkv.weight"

# Tiny and small have q, k and v in one layer and w1 and w2 as well, the others each of them apart.
OFFICIAL = (
    Row(f"{_ATTENTION}.q_proj.weight", _QKV, part=(0, 3)),
    Row(f"{_ATTENTION}.k_proj.weight", _QKV, part=(1, 3)),
    Row(f"{_ATTENTION}.v_proj.weight", _QKV, part=(2, 3)),
    Row(f"{_ATTENTION}.inner_attn_ln.*", f"{_ATTENTION}.norm.*"),
    Row(f"{_MLP}.w12.*", f"{_MLP}.fc1.*"),
    Row(f"{_MLP}.w1.*", f"{_MLP}.fc1.*", part=(0, 2)),
    Row(f"{_MLP}.w2.*", f"{_MLP}.fc1.*", part=(1, 2)),
    Row(f"{_MLP}.ffn_ln.*", f"{_MLP}.norm.*"),
    Row(f"{_MLP}.w3.*", f"{_MLP}.fc2.*"),
    Row("*", "*"),
)

TIMM_WHOLE = (Row("*", "*"),)
TIMM_APART = (
    Row(f"{_ATTENTION}.q_proj.weight", _QKV, part=(0, 3)),
    Row(f"{_ATTENTION}.k_proj.weight", _QKV, part=(1, 3)),
    Row(f"{_ATTENTION}.v_proj.weight", _QKV, part=(2, 3)),
    Row(f"{_ATTENTION}.q_proj.bias", f"{_ATTENTION}.q_bias"),
    Row(f"{_ATTENTION}.v_proj.bias", f"{_ATTENTION}.v_bias"),
    Row(f"{_MLP}.fc1_g.*", f"{_MLP}.fc1.*", part=(0, 2)),
    Row(f"{_MLP}.fc1_x.*", f"{_MLP}.fc1.*", part=(1, 2)),
    Row("*", "*"),
)

# ---------------------------------------------------------------- options


def _options(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    """Pretrained networks norm their tokens, finetuned ones what they pool."""
    final = "pooled" if "fc_norm.weight" in state else "tokens"
    return {"layer_norm_eps": 1e-6, "final_norm": final, **ANTIALIASED, **timm_facts(checkpoint)}


# ---------------------------------------------------------------- and back


def _timm_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    span = options["rope_grid"] or options["image_size"] // options["patch_size"]
    arguments = {
        "img_size": options["image_size"],
        "patch_size": options["patch_size"],
        "embed_dim": options["embed_dim"],
        "depth": options["depth"],
        "num_heads": options["num_heads"],
        "mlp_ratio": options["mlp_ratio"],
        "qkv_bias": options["qkv_bias"] == "qv",
        "qkv_fused": not options["mlp_norm"],
        "scale_mlp": options["mlp_norm"],
        "scale_attn_inner": options["attention_norm"],
        "ref_feat_shape": [span, span],
        "global_pool": "avg" if options["pool"] == "mean" else "token",
        "use_fc_norm": options["final_norm"] == "pooled",
        "dynamic_img_size": True,
        "dynamic_img_pad": True,
    }
    record = timm_record(
        backbone,
        architecture="eva02_tiny_patch14_224",
        model_args=arguments,
        size=options["image_size"],
        classifier="head",
    )
    return {"config.json": record}


def _to_timm(*, mlp_norm: bool) -> Export:
    return Export(
        _timm_files,
        says=frozenset({"embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "image_size", "rope_grid"})
        | {"attention_norm", "pool"},
        fixed={
            "relations": "rope_index",
            "qkv_bias": frozenset({"qv", False}),
            "mlp": "gated",
            "mlp_norm": mlp_norm,
            "activation": "silu",
            "layer_norm_eps": 1e-6,
            "final_norm": frozenset({"tokens", "pooled"}),
        },
    )


# ---------------------------------------------------------------- dialects

_SIGNS = ("patch_embed.proj.weight", "pos_embed")
_NOT = ("blocks.{i}.gamma_1", "reg_token")

DIALECTS = (
    Dialect(
        "official",
        "eva02",
        "vit",
        has=(*_SIGNS, (f"{_MLP}.w1.weight", f"{_MLP}.w12.weight"), f"{_ATTENTION}.q_bias"),
        lacks=_NOT,
        table=OFFICIAL,
        left_out=("head.*", "lm_head.*", "mask_token", "rope.*", "blocks.*.attn.rope.*"),
        options=_options,
    ),
    Dialect(
        "timm",
        "eva02",
        "vit",
        has=(*_SIGNS, f"{_ATTENTION}.q_bias", f"{_MLP}.fc1.weight"),
        lacks=_NOT,
        table=TIMM_WHOLE,
        left_out=("head.*", "mask_token"),
        options=_options,
        export=_to_timm(mlp_norm=False),
    ),
    Dialect(
        "timm",
        "eva02 with a norm in its MLP",
        "vit",
        has=(*_SIGNS, f"{_MLP}.fc1_g.weight"),
        lacks=_NOT,
        table=TIMM_APART,
        left_out=("head.*", "mask_token"),
        options=_options,
        export=_to_timm(mlp_norm=True),
    ),
)

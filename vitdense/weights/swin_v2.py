"""Swin v2, as Microsoft, timm, transformers and torchvision name it."""

from typing import Any

from vitdense.contracts import Backbone
from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, Export, State
from vitdense.weights.facts import IMAGENET, timm_facts, timm_record, transformers_facts, transformers_preprocessor
from vitdense.weights.rows import Row

_FINAL = Row("norm.*", "norms.{last}.*", spare=True)

TIMM = (
    _FINAL,
    # features_only joins the names of its parts in this way.
    Row(("layers.{i}.*", "layers_{i}.*"), "layers.{i}.*"),
    Row("patch_embed.*", "patch_embed.*"),
)

# Merging at the end of stage i, where ours is at the beginning of stage i + 1.
OFFICIAL = (
    _FINAL,
    Row("layers.{i}.downsample.*", "layers.{i+1}.downsample.*"),
    Row("layers.{i}.blocks.*", "layers.{i}.blocks.*"),
    Row("patch_embed.*", "patch_embed.*"),
)

_BLOCK, _OURS = "encoder.layers.{i}.blocks.{j}", "layers.{i}.blocks.{j}"
TRANSFORMERS = (
    Row("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    Row("embeddings.norm.*", "patch_embed.norm.*"),
    Row(_BLOCK + ".attention.self.logit_scale", _OURS + ".attn.logit_scale"),
    Row(_BLOCK + ".attention.self.continuous_position_bias_mlp.*", _OURS + ".attn.cpb_mlp.*"),
    Row(_BLOCK + ".attention.self.query.weight", _OURS + ".attn.qkv.weight", part=(0, 3)),
    Row(_BLOCK + ".attention.self.key.weight", _OURS + ".attn.qkv.weight", part=(1, 3)),
    Row(_BLOCK + ".attention.self.value.weight", _OURS + ".attn.qkv.weight", part=(2, 3)),
    Row(_BLOCK + ".attention.self.query.bias", _OURS + ".attn.q_bias"),
    Row(_BLOCK + ".attention.self.value.bias", _OURS + ".attn.v_bias"),
    Row(_BLOCK + ".attention.output.dense.*", _OURS + ".attn.proj.*"),
    Row(_BLOCK + ".layernorm_before.*", _OURS + ".norm1.*"),
    Row(_BLOCK + ".layernorm_after.*", _OURS + ".norm2.*"),
    Row(_BLOCK + ".intermediate.dense.*", _OURS + ".mlp.fc1.*"),
    Row(_BLOCK + ".output.dense.*", _OURS + ".mlp.fc2.*"),
    Row("encoder.layers.{i}.downsample.*", "layers.{i+1}.downsample.*"),
    Row("layernorm.*", "norms.{last}.*", spare=True),
)

# features.0 is the embedding, odd ones are stages, even ones the mergings before the next stage; k's bias is kept zero.
TORCHVISION = (
    Row("features.0.0.*", "patch_embed.proj.*"),
    Row("features.0.2.*", "patch_embed.norm.*"),
    Row("features.{2i+1}.{j}.mlp.0.*", _OURS + ".mlp.fc1.*"),
    Row("features.{2i+1}.{j}.mlp.3.*", _OURS + ".mlp.fc2.*"),
    Row("features.{2i+1}.{j}.norm{k}.*", _OURS + ".norm{k}.*"),
    Row("features.{2i+1}.{j}.attn.qkv.bias", _OURS + ".attn.q_bias", cut=(0, 1, 3)),
    Row("features.{2i+1}.{j}.attn.qkv.bias", _OURS + ".attn.v_bias", cut=(2, 3, 3)),
    Row("features.{2i+1}.{j}.attn.*", _OURS + ".attn.*"),
    Row("features.{2i+2}.*", "layers.{i+1}.downsample.*"),
    _FINAL,
)

# ---------------------------------------------------------------- options


def _timm(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    return timm_facts(checkpoint)


def _official(_: Checkpoint, __: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-5, **IMAGENET}


def _transformers(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    facts = transformers_facts(checkpoint, layer_norm_eps=1e-5)
    if facts["layer_norm_eps"] != 1e-5:
        # transformers keeps 1e-5 in the embedding and the mergings whatever this says: no one number would be right.
        raise WeightsError(f"{checkpoint.source} has layer_norm_eps {facts['layer_norm_eps']}; known here: 1e-05")
    config = checkpoint.config
    if "image_size" in config:
        facts["image_size"] = config["image_size"]
    if "window_size" in config:
        facts["window"] = config["window_size"]
    if any(config.get("pretrained_window_sizes", ())):
        facts["pretrained_windows"] = tuple(config["pretrained_window_sizes"])
    return facts


def _torchvision(_: Checkpoint, __: State) -> dict[str, Any]:
    # torchvision decides by the map at hand whether to shift.
    return {"layer_norm_eps": 1e-5, "image_size": None, **IMAGENET}


# ---------------------------------------------------------------- and back

_SAYS = frozenset({"embed_dim", "depths", "num_heads", "window", "patch_size", "mlp_ratio", "qkv_bias"}) | {
    "image_size",
    "pretrained_windows",
}
_FIXED = {"layer_norm_eps": 1e-5, "norm_maps": False}
_UNPRETRAINED = (0, 0, 0, 0)


def _timm_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    size = options["image_size"] or 256
    record = timm_record(
        backbone,
        architecture="swinv2_tiny_window8_256",
        model_args={
            "img_size": size,
            "strict_img_size": False,
            "patch_size": options["patch_size"],
            "embed_dim": options["embed_dim"],
            "depths": list(options["depths"]),
            "num_heads": list(options["num_heads"]),
            "window_size": options["window"],
            "pretrained_window_sizes": list(options["pretrained_windows"] or _UNPRETRAINED),
            "mlp_ratio": options["mlp_ratio"],
            "qkv_bias": options["qkv_bias"],
        },
        size=size,
        classifier="head.fc",
    )
    return {"config.json": record}


def _transformers_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    stages, size = len(options["depths"]), options["image_size"] or 256
    config = {
        "architectures": ["Swinv2Model"],
        "model_type": "swinv2",
        "embed_dim": options["embed_dim"],
        "depths": list(options["depths"]),
        "num_heads": list(options["num_heads"]),
        "window_size": options["window"],
        "pretrained_window_sizes": list(options["pretrained_windows"] or _UNPRETRAINED),
        "image_size": size,
        "patch_size": options["patch_size"],
        "num_channels": len(backbone.mean),
        "mlp_ratio": options["mlp_ratio"],
        "qkv_bias": options["qkv_bias"],
        "hidden_act": "gelu",
        "layer_norm_eps": options["layer_norm_eps"],
        "out_features": [f"stage{i % stages + 1}" for i in options["out_indices"] or range(stages)],
        "torch_dtype": "float32",
    }
    processor = transformers_preprocessor(backbone, kind="ViTImageProcessor", size=size)
    return {"config.json": config, "preprocessor_config.json": processor}


def _timm_notes(options: dict[str, Any]) -> list[str]:
    if options["window_order"] == "roll_pad":
        return []
    return ["timm rolls before it pads: where windows don't divide the map it gives other maps"]


# ---------------------------------------------------------------- dialects

_SIGNED = (
    "patch_embed.proj.weight",
    ("layers.{i}.blocks.{j}.attn.logit_scale", "layers_{i}.blocks.{j}.attn.logit_scale"),
)
_LEFT_OUT = ("head.*", "*.relative_position_index", "*.relative_coords_table", "*.attn_mask", "*.attn.k_bias")

DIALECTS = (
    Dialect("vitdense", "swinv2", "swinv2", has=(*_SIGNED, "norms.{i}.weight"), table=(Row("*", "*"),)),
    Dialect(
        "official",
        "swinv2",
        "swinv2",
        has=(*_SIGNED, "layers.0.downsample.reduction.weight"),
        table=OFFICIAL,
        left_out=_LEFT_OUT,
        options=_official,
    ),
    Dialect(
        "timm",
        "swinv2",
        "swinv2",
        has=_SIGNED,
        table=TIMM,
        left_out=_LEFT_OUT,
        options=_timm,
        export=Export(_timm_files, says=_SAYS | {"window_order"}, fixed=_FIXED, notes=_timm_notes),
    ),
    Dialect(
        "transformers",
        "swinv2",
        "swinv2",
        has=(
            "embeddings.patch_embeddings.projection.weight",
            "encoder.layers.{i}.blocks.{j}.attention.self.logit_scale",
        ),
        table=TRANSFORMERS,
        left_out=("classifier.*", "decoder.*", "embeddings.mask_token", "*.relative_position_index", "*_coords_table"),
        inner="swinv2.",
        options=_transformers,
        export=Export(_transformers_files, says=_SAYS, fixed=_FIXED),
    ),
    Dialect(
        "torchvision",
        "swinv2",
        "swinv2",
        has=("features.0.0.weight", "features.1.0.attn.logit_scale"),
        table=TORCHVISION,
        left_out=("head.*", "*.relative_position_index", "*.relative_coords_table"),
        options=_torchvision,
    ),
)

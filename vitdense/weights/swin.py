"""Swin, as Microsoft, timm, transformers, torchvision and mmseg name it."""

from typing import Any

from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, Export, State
from vitdense.weights.facts import IMAGENET, timm_facts, timm_record, transformers_facts, transformers_preprocessor
from vitdense.weights.rows import Change, Row

# ---------------------------------------------------------------- tables

# A final norm is the last stage's, unless that has one of its own.
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
    Row("norm{i}.*", "norms.{i}.*"),
    Row(("layers.{i}.downsample.*", "layers_{i}.downsample.*"), "layers.{i+1}.downsample.*"),
    Row(("layers.{i}.blocks.*", "layers_{i}.blocks.*"), "layers.{i}.blocks.*"),
    Row("patch_embed.*", "patch_embed.*"),
)

_BLOCK, _OURS = "encoder.layers.{i}.blocks.{j}", "layers.{i}.blocks.{j}"
TRANSFORMERS = (
    Row("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    Row("embeddings.norm.*", "patch_embed.norm.*"),
    Row(_BLOCK + ".layernorm_before.*", _OURS + ".norm1.*"),
    Row((_BLOCK + ".attention.self.query.*", _BLOCK + ".attention.q_proj.*"), _OURS + ".attn.qkv.*", part=(0, 3)),
    Row((_BLOCK + ".attention.self.key.*", _BLOCK + ".attention.k_proj.*"), _OURS + ".attn.qkv.*", part=(1, 3)),
    Row((_BLOCK + ".attention.self.value.*", _BLOCK + ".attention.v_proj.*"), _OURS + ".attn.qkv.*", part=(2, 3)),
    Row(
        (
            _BLOCK + ".attention.self.relative_position_bias_table",
            _BLOCK + ".attention.relative_position_bias.relative_position_bias_table",
        ),
        _OURS + ".attn.relative_position_bias_table",
    ),
    Row((_BLOCK + ".attention.output.dense.*", _BLOCK + ".attention.o_proj.*"), _OURS + ".attn.proj.*"),
    Row(_BLOCK + ".layernorm_after.*", _OURS + ".norm2.*"),
    Row((_BLOCK + ".intermediate.dense.*", _BLOCK + ".mlp.fc1.*"), _OURS + ".mlp.fc1.*"),
    Row((_BLOCK + ".output.dense.*", _BLOCK + ".mlp.fc2.*"), _OURS + ".mlp.fc2.*"),
    Row("encoder.layers.{i}.downsample.*", "layers.{i+1}.downsample.*"),
    Row("hidden_states_norms.stage{i+1}.*", "norms.{i}.*"),
    Row("layernorm.*", "norms.{last}.*", spare=True),
)

# features.0 is the embedding, odd ones are stages, even ones the mergings before the next stage.
TORCHVISION = (
    Row("features.0.0.*", "patch_embed.proj.*"),
    Row("features.0.2.*", "patch_embed.norm.*"),
    Row("features.{2i+1}.{j}.mlp.0.*", "layers.{i}.blocks.{j}.mlp.fc1.*"),
    Row("features.{2i+1}.{j}.mlp.3.*", "layers.{i}.blocks.{j}.mlp.fc2.*"),
    Row("features.{2i+1}.{j}.norm{k}.*", "layers.{i}.blocks.{j}.norm{k}.*"),
    Row("features.{2i+1}.{j}.attn.*", "layers.{i}.blocks.{j}.attn.*"),
    Row("features.{2i+2}.*", "layers.{i+1}.downsample.*"),
    _FINAL,
)


def _from_unfold(tensor: Tensor) -> Tensor:
    """nn.Unfold lists four neighbours for each channel, row by row; ours lists the channels of each, column by column.

    tensor: (..., 4C) -> (..., 4C).
    """
    neighbours = tensor.reshape(*tensor.shape[:-1], -1, 2, 2)  # (..., C, rows, columns)
    return neighbours.transpose(-3, -1).flatten(-3)  # (..., columns * rows * C)


def _to_unfold(tensor: Tensor) -> Tensor:
    """tensor: (..., 4C), in our order -> (..., 4C) in nn.Unfold's."""
    neighbours = tensor.reshape(*tensor.shape[:-1], 2, 2, -1)  # (..., columns, rows, C)
    return neighbours.transpose(-3, -1).flatten(-3)  # (..., C * rows * columns)


_unfold = Change(_from_unfold, _to_unfold)
_STAGE = "stages.{i}.blocks.{j}"
MMSEG = (
    Row("patch_embed.projection.*", "patch_embed.proj.*"),
    Row("patch_embed.norm.*", "patch_embed.norm.*"),
    Row(_STAGE + ".norm{k}.*", _OURS + ".norm{k}.*"),
    Row(_STAGE + ".attn.w_msa.*", _OURS + ".attn.*"),
    Row(_STAGE + ".ffn.layers.0.0.*", _OURS + ".mlp.fc1.*"),
    Row(_STAGE + ".ffn.layers.1.*", _OURS + ".mlp.fc2.*"),
    Row("stages.{i}.downsample.reduction.weight", "layers.{i+1}.downsample.reduction.weight", change=_unfold),
    Row("stages.{i}.downsample.norm.*", "layers.{i+1}.downsample.norm.*", change=_unfold),
    Row("norm{i}.*", "norms.{i}.*"),
)

# ---------------------------------------------------------------- options


def _timm(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    return timm_facts(checkpoint)


def _official(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    # Norms of outputs are in checkpoints of dense tasks, whose code shifts always.
    return {"layer_norm_eps": 1e-5, "always_shift": _for_dense(state), **IMAGENET, **timm_facts(checkpoint)}


def _transformers(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    facts = transformers_facts(checkpoint, layer_norm_eps=1e-5)
    if facts["layer_norm_eps"] != 1e-5:
        # transformers keeps 1e-5 in the embedding and the mergings whatever this says: no one number would be right.
        raise WeightsError(f"{checkpoint.source} has layer_norm_eps {facts['layer_norm_eps']}; known here: 1e-05")
    return {**facts, "always_shift": _for_dense(state)}


def _torchvision(_: Checkpoint, __: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-5, "always_shift": False, **IMAGENET}


def _mmseg(_: Checkpoint, __: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-5, "always_shift": True, **IMAGENET}


def _for_dense(state: State) -> bool:
    """Whether outputs other than the last have norms."""
    return len({key for key in state if key.startswith("norms.")}) > 2


# ---------------------------------------------------------------- and back

_SHAPE = frozenset(
    {"embed_dim", "depths", "num_heads", "window", "patch_size", "mlp_ratio", "qkv_bias", "always_shift"}
)


def _native_size(options: dict[str, Any]) -> int:
    """The size of pictures whose last map is one window."""
    return int(options["patch_size"] * 2 ** (len(options["depths"]) - 1) * options["window"])


def _timm_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    size = _native_size(options)
    arguments = {
        "img_size": size,
        "strict_img_size": False,
        "patch_size": options["patch_size"],
        "embed_dim": options["embed_dim"],
        "depths": list(options["depths"]),
        "num_heads": list(options["num_heads"]),
        "window_size": options["window"],
        "always_partition": options["always_shift"],
        "mlp_ratio": options["mlp_ratio"],
        "qkv_bias": options["qkv_bias"],
    }
    name = {96: "swin_tiny", 128: "swin_base", 192: "swin_large"}.get(options["embed_dim"], "swin_tiny")
    record = timm_record(
        backbone,
        architecture=f"{name}_patch4_window7_224",
        model_args=arguments,
        size=size,
        classifier="head.fc",
    )
    return {"config.json": record}


def _transformers_files(backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    stages, size = len(options["depths"]), _native_size(options)
    config = {
        "architectures": ["SwinModel"],
        "model_type": "swin",
        "embed_dim": options["embed_dim"],
        "depths": list(options["depths"]),
        "num_heads": list(options["num_heads"]),
        "window_size": options["window"],
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
    if options["window_order"] == "roll_pad" and options["always_shift"]:
        return []
    size = _native_size(options)
    return [f"timm rolls before it pads and shifts as for {size} x {size}: pictures of other sizes give other maps"]


def _transformers_notes(options: dict[str, Any]) -> list[str]:
    found = [] if options["norm_maps"] else ["SwinBackbone norms its maps, and these are not normed"]
    if not options["always_shift"]:
        found.append("SwinBackbone shifts also where one window covers the map, and SwinModel as here")
    return found


_TIMM = Export(
    _timm_files,
    says=_SHAPE | {"window_order"},
    fixed={"layer_norm_eps": 1e-5},
    dropped=("norms.*",),
    notes=_timm_notes,
)
_TRANSFORMERS = Export(_transformers_files, says=_SHAPE, fixed={"layer_norm_eps": 1e-5}, notes=_transformers_notes)

# ---------------------------------------------------------------- dialects

_SIGNED = (
    "patch_embed.proj.weight",
    ("layers.{i}.blocks.{j}.attn.qkv.weight", "layers_{i}.blocks.{j}.attn.qkv.weight"),
)
_LEFT_OUT = ("head.*", "*.relative_position_index", "*.attn_mask")

DIALECTS = (
    Dialect("vitdense", "swin", "swin", has=(*_SIGNED, "norms.{i}.weight"), table=(Row("*", "*"),)),
    Dialect(
        "official",
        "swin",
        "swin",
        has=(*_SIGNED, ("layers.0.downsample.reduction.weight", "layers_0.downsample.reduction.weight")),
        table=OFFICIAL,
        left_out=_LEFT_OUT,
        options=_official,
    ),
    Dialect("timm", "swin", "swin", has=_SIGNED, table=TIMM, left_out=_LEFT_OUT, options=_timm, export=_TIMM),
    Dialect(
        "transformers",
        "swin",
        "swin",
        has=("embeddings.patch_embeddings.projection.weight", "encoder.layers.{i}.blocks.{j}.layernorm_before.weight"),
        table=TRANSFORMERS,
        left_out=(
            "classifier.*",
            "pooler.*",
            "decoder.*",
            "embeddings.mask_token",
            "*.relative_position_index",
            "hidden_states_norms.stem.*",
        ),
        inner="swin.",
        options=_transformers,
        export=_TRANSFORMERS,
    ),
    Dialect(
        "torchvision",
        "swin",
        "swin",
        has=("features.0.0.weight", "features.1.0.attn.qkv.weight"),
        table=TORCHVISION,
        left_out=("head.*", "*.relative_position_index"),
        options=_torchvision,
    ),
    Dialect(
        "mmseg",
        "swin",
        "swin",
        has=("patch_embed.projection.weight", "stages.{i}.blocks.{j}.attn.w_msa.qkv.weight"),
        table=MMSEG,
        left_out=("*.relative_position_index",),
        options=_mmseg,
    ),
)

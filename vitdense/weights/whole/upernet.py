"""transformers' UperNetForSemanticSegmentation, on Swin, on BEiT, and on whatever else it builds."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.parts import Part, Parts, Whole, expect, first, named_classes, square

# The stages of networks that halve the size from 4 on.
_PYRAMID = (4, 8, 16, 32)


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of a UperNet."""
    config: Mapping[str, Any] = checkpoint.config
    parts = Parts(checkpoint.source, dict(checkpoint.state))
    kind = (config.get("backbone_config") or {}).get("model_type")
    if kind is None:
        raise WeightsError(f"{checkpoint.source} says nothing of its backbone: config.json has no backbone_config")
    made = {"swin": swin_parts, "beit": _beit}.get(kind, other_parts)(checkpoint, parts)
    made["head"] = _head(checkpoint, parts)
    parts.finish()
    classes = made["head"].options["num_classes"]
    return Whole(checkpoint.source, classes=named_classes(config, classes), **made)


def _head(checkpoint: Checkpoint, parts: Parts) -> Part:
    config = checkpoint.config
    state = parts.take("decode_head.", "auxiliary_head.")
    expect(checkpoint.source, config, {"auxiliary_concat_input": False})
    if "decode_head.classifier.weight" not in state:
        raise WeightsError(f"{checkpoint.source} lacks the head of its UperNet: it has {first(checkpoint.state)}")
    auxiliary = any(key.startswith("auxiliary_head.") for key in state)
    return Part("upernet", head_options(config, state, auxiliary=auxiliary), state)


def head_options(config: Mapping[str, Any], state: Mapping[str, Tensor], *, auxiliary: bool) -> dict[str, Any]:
    """What config.json says of the head, and else its tensors."""
    options: dict[str, Any] = {
        "num_classes": state["decode_head.classifier.weight"].shape[0],
        "channels": state["decode_head.classifier.weight"].shape[1],
        "pool_scales": tuple(config.get("pool_scales", (1, 2, 3, 6))),
        "auxiliary_weight": 0.0,
        "dropout": 0.0,
    }
    if auxiliary:
        options |= {
            "auxiliary_weight": config.get("auxiliary_loss_weight") or 0.4,
            "auxiliary_channels": state["auxiliary_head.classifier.weight"].shape[1],
            "auxiliary_level": 2,
            "auxiliary_convs": config.get("auxiliary_num_convs", 1),
        }
    return options


# ---------------------------------------------------------------- backbones


def _backbone(checkpoint: Checkpoint, parts: Parts) -> Checkpoint:
    """The backbone's tensors, with its own config beside them."""
    return Checkpoint(
        parts.take("backbone."),
        checkpoint.source,
        config=checkpoint.config["backbone_config"],
        preprocessor=checkpoint.preprocessor,
    )


def taken_stages(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The numbers of the stages whose maps are taken, from 1."""
    count = config.get("num_hidden_layers") or len(config.get("depths") or ())
    names: list[str] = config.get("out_features") or [f"stage{count}"]
    if "stem" in names:
        raise WeightsError("a UperNet on the map of a stem is not known here")
    return tuple(int(name.removeprefix("stage")) for name in names)


def swin_parts(checkpoint: Checkpoint, parts: Parts) -> dict[str, Any]:
    """The name, options and tensors of a Swin."""
    backbone = _backbone(checkpoint, parts)
    config = backbone.config
    expect(checkpoint.source, config, {"use_absolute_embeddings": False, "hidden_act": "gelu"})
    options = {
        "embed_dim": config.get("embed_dim", 96),
        "depths": tuple(config.get("depths", (2, 2, 6, 2))),
        "num_heads": tuple(config.get("num_heads", (3, 6, 12, 24))),
        "window": config.get("window_size", 7),
        "patch_size": square(checkpoint.source, config.get("patch_size", 4)),
        "in_channels": config.get("num_channels", 3),
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "qkv_bias": config.get("qkv_bias", True),
        "out_indices": tuple(stage - 1 for stage in taken_stages({"num_hidden_layers": None, **config})),
        "always_shift": True,
    }
    return {"backbone": "swin_tiny", "options": options, "weights": backbone}


def _beit(checkpoint: Checkpoint, parts: Parts) -> dict[str, Any]:
    state = parts.take("backbone.fpn", strip="backbone.")
    backbone = beit_backbone(checkpoint, parts)
    options = beit_options(backbone)
    expect(checkpoint.source, backbone.config, {"reshape_hidden_states": True})
    made: dict[str, Any] = {"backbone": "beit_base_patch16", "options": options, "weights": backbone}
    patch = options["patch_size"]
    if backbone.config.get("add_fpn"):
        return made | {"adapter": Part("feature2pyramid", {}, state), "multiple": 2 * patch}
    # Maps of one size, which transformers' head takes as it takes any.
    return made | {"strides": tuple(patch << i for i in range(len(options["out_indices"]))), "multiple": patch}


def beit_backbone(checkpoint: Checkpoint, parts: Parts) -> Checkpoint:
    """The tensors of a BEiT and its config; files have the name of the inner model in some keys and not in others."""
    parts.state |= parts.take("backbone.beit.", strip="backbone.beit.", put="backbone.")
    return _backbone(checkpoint, parts)


def beit_options(backbone: Checkpoint) -> dict[str, Any]:
    """How a BEiT was built."""
    config = backbone.config
    tables = config.get("use_relative_position_bias") or config.get("use_shared_relative_position_bias")
    width = config.get("hidden_size", 768)
    return {
        "embed_dim": width,
        "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "patch_size": square(backbone.source, config.get("patch_size", 16)),
        "in_channels": config.get("num_channels", 3),
        "mlp_ratio": config.get("intermediate_size", 3072) / width,
        "image_size": square(backbone.source, config.get("image_size", 224)),
        "relations": "table" if tables else "none",
        "layer_scale": config.get("layer_scale_init_value", 0.1),
        "norm_maps": False,
        "out_indices": tuple(stage - 1 for stage in taken_stages(config)),
    }


def other_parts(checkpoint: Checkpoint, parts: Parts) -> dict[str, Any]:
    """ConvNeXt, ResNet and the others: transformers builds them."""
    config = checkpoint.config["backbone_config"]
    weights = Checkpoint(
        parts.take("backbone."), checkpoint.source, config=checkpoint.config, preprocessor=checkpoint.preprocessor
    )
    made = {"backbone": f"hf/{config['model_type']}", "weights": weights}
    indices = tuple(stage - 1 for stage in taken_stages(config))
    options = {"out_indices": indices, "in_channels": config.get("num_channels", 3)}
    if config.get("depths"):
        return made | {"options": options, "multiple": _PYRAMID[-1]}
    patch = square(checkpoint.source, config["patch_size"])
    strides = tuple(patch << i for i in range(len(indices)))
    return made | {"options": options, "strides": strides, "multiple": patch}

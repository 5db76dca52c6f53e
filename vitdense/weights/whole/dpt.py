"""transformers' DPT for segmentation and depth, on a plain ViT, the hybrid of BiT's ResNet, and BEiT."""

from collections.abc import Mapping
from typing import Any

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.facts import HALF
from vitdense.weights.whole.parts import Part, Parts, Whole, expect, first, named_classes, square
from vitdense.weights.whole.upernet import beit_backbone, beit_options

_STRIDES = (4, 8, 16, 32)
_UNUSED = "neck.fusion_stage.layers.0.residual_layer1."


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of a DPT."""
    config: Mapping[str, Any] = checkpoint.config
    expect(checkpoint.source, config, {"head_in_index": -1, "hidden_dropout_prob": 0.0})
    parts = Parts(checkpoint.source, dict(checkpoint.state))
    backbone, options, weights = _backbone(checkpoint, parts)
    adapter = _adapter(checkpoint, parts, options["patch_size"])
    unused = tuple(parts.take(_UNUSED))
    head = _head(checkpoint, parts)
    parts.finish()
    return Whole(
        checkpoint.source,
        backbone,
        options,
        weights,
        head,
        adapter=adapter,
        multiple=_STRIDES[-1],
        classes=named_classes(config, head.options.get("num_classes", 0)),
        left_out=unused,
    )


def _backbone(checkpoint: Checkpoint, parts: Parts) -> tuple[str, dict[str, Any], Checkpoint]:
    """Its name, its options, its tensors."""
    config = checkpoint.config
    hybrid, network = config.get("is_hybrid", False), config.get("backbone_config")
    if hybrid or not network:
        weights = Checkpoint(parts.take("dpt."), checkpoint.source, config=config, preprocessor=checkpoint.preprocessor)
        if hybrid:
            return "vit_base_r50_s16", _hybrid(checkpoint), weights
        return "vit_base_patch16", _plain(checkpoint), weights
    if network.get("model_type") == "beit":
        expect(checkpoint.source, network, {"reshape_hidden_states": False, "add_fpn": False})
        weights = beit_backbone(checkpoint, parts)
        return "beit_base_patch16", beit_options(weights), weights
    raise WeightsError(
        f"{checkpoint.source} is a DPT on {network.get('model_type')}; known here: on a ViT, the hybrid, and beit"
    )


# ---------------------------------------------------------------- backbones


def _transformer(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    width = config.get("hidden_size", 768)
    options = {
        "embed_dim": width,
        "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "patch_size": square(checkpoint.source, config.get("patch_size", 16)),
        "image_size": square(checkpoint.source, config.get("image_size", 384)),
        "in_channels": config.get("num_channels", 3),
        "mlp_ratio": config.get("intermediate_size", 3072) / width,
        "qkv_bias": config.get("qkv_bias", True),
        "norm_maps": False,
        "position_interpolation": "bilinear",
        "position_antialias": False,
    }
    return options if "image_mean" in checkpoint.preprocessor else options | HALF


def _blocks(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The blocks that are taken, in their order."""
    return tuple(sorted(set(checkpoint.config.get("backbone_out_indices", (2, 5, 8, 11)))))


def _plain(checkpoint: Checkpoint) -> dict[str, Any]:
    return _transformer(checkpoint) | {"out_indices": _blocks(checkpoint)}


def _hybrid(checkpoint: Checkpoint) -> dict[str, Any]:
    resnet: Mapping[str, Any] = checkpoint.config.get("backbone_config") or {}
    width, layers = resnet.get("embedding_size", 64), tuple(resnet.get("depths", (3, 4, 9)))
    wanted = {
        "hidden_sizes": tuple(4 * width << i for i in range(len(layers))),
        "out_features": tuple(f"stage{i + 1}" for i in range(len(layers))),
    }
    given = {"hidden_sizes": (256, 512, 1024, 2048)[: len(layers)], **resnet}
    # transformers ignores the widths of stages that it hasn't got.
    expect(checkpoint.source, {**given, "hidden_sizes": list(given["hidden_sizes"])[: len(layers)]}, wanted)
    # Which blocks are taken is said behind two numbers that stand for the ResNet's stages.
    taken = tuple(checkpoint.config.get("backbone_out_indices", (2, 5, 8, 11)))[2:]
    blocks = tuple(len(layers) + i for i in sorted(set(taken)))
    return _transformer(checkpoint) | {"stem_layers": layers, "stem_width": width, "out_indices": (0, 1, *blocks)}


# ---------------------------------------------------------------- neck and head


def _adapter(checkpoint: Checkpoint, parts: Parts, patch: int) -> Part:
    config = checkpoint.config
    readout = config.get("readout_type", "project")
    factors, kept = tuple(config.get("reassemble_factors", (4, 2, 1, 0.5))), 2 if config.get("is_hybrid") else 0
    wanted = tuple(patch / stride for stride in _STRIDES)
    if factors[kept:] != wanted[kept:]:
        raise WeightsError(f"{checkpoint.source} has reassemble_factors {factors}; known for its patches: {wanted}")
    if kept:
        expect(checkpoint.source, config, {"neck_ignore_stages": (0, 1)})
    if readout == "project":
        expect(checkpoint.source, config, {"hidden_act": "gelu"})
    channels = tuple(config.get("neck_hidden_sizes", (96, 192, 384, 768)))
    state = parts.take("neck.reassemble_stage.", strip="neck.reassemble_stage.")
    return Part("reassemble", {"channels": channels, "readout": readout}, state)


def _head(checkpoint: Checkpoint, parts: Parts) -> Part:
    config = checkpoint.config
    state = parts.take("neck.convs.", "neck.fusion_stage.", "head.", "auxiliary_head.")
    options: dict[str, Any] = {
        "channels": config.get("fusion_hidden_size", 256),
        "batch_norm": bool(config.get("use_batch_norm_in_fusion_residual", False)),
        "bias": config.get("use_bias_in_fusion_residual"),
    }
    if "head.head.1.running_mean" in state:
        auxiliary = any(key.startswith("auxiliary_head.") for key in state)
        return Part("dpt", options | segmentation_options(config, state, auxiliary=auxiliary), state)
    if "head.head.2.weight" not in state:
        raise WeightsError(f"{checkpoint.source} lacks the head of its DPT: it has {first(checkpoint.state)}")
    return Part("dpt_depth", options | depth_options(projection=bool(config.get("add_projection"))), state)


def segmentation_options(config: Mapping[str, Any], state: Mapping[str, Any], *, auxiliary: bool) -> dict[str, Any]:
    """Options of the head `dpt`."""
    return {
        "num_classes": state["head.head.4.weight"].shape[0],
        "dropout": float(config.get("semantic_classifier_dropout", 0.1)),
        "auxiliary_weight": (config.get("auxiliary_loss_weight") or 0.4) if auxiliary else 0.0,
    }


def depth_options(*, projection: bool = False) -> dict[str, Any]:
    """Options of the head `dpt_depth`: what it gives is published as it comes, and often no metres."""
    return {"projection": projection, "min_depth": 0.0, "max_depth": float("inf")}

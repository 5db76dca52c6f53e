"""transformers' DepthAnythingForDepthEstimation on DINOv2: Depth Anything, the second version, metric models."""

from typing import Any

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.dpt import depth_options
from vitdense.weights.whole.parts import Part, Parts, Whole, expect, square
from vitdense.weights.whole.upernet import taken_stages

_UNUSED = "neck.fusion_stage.layers.0.residual_layer1."


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of a Depth Anything."""
    config = checkpoint.config
    network: dict[str, Any] = config.get("backbone_config") or {}
    if network.get("model_type") != "dinov2":
        kind = network.get("model_type")
        raise WeightsError(f"{checkpoint.source} is a Depth Anything on {kind}; known here: on dinov2")
    patch = square(checkpoint.source, network.get("patch_size", 14))
    expect(checkpoint.source, config, {"head_in_index": -1, "reassemble_factors": (4, 2, 1, 0.5), "patch_size": patch})
    expect(checkpoint.source, network, {"use_swiglu_ffn": False, "reshape_hidden_states": False})
    parts = Parts(checkpoint.source, dict(checkpoint.state))
    weights = Checkpoint(parts.take("backbone."), checkpoint.source, network, checkpoint.preprocessor)
    unused = tuple(parts.take(_UNUSED))
    head = Part("depth_anything", _head(checkpoint), parts.take("neck.", "head."))
    parts.finish()
    options = {
        "embed_dim": network.get("hidden_size", 768),
        "depth": network.get("num_hidden_layers", 12),
        "num_heads": network.get("num_attention_heads", 12),
        "patch_size": patch,
        "image_size": square(checkpoint.source, network.get("image_size", 224)),
        "in_channels": network.get("num_channels", 3),
        "mlp_ratio": network.get("mlp_ratio", 4),
        "qkv_bias": network.get("qkv_bias", True),
        "layer_scale": network.get("layerscale_value", 1.0),
        "norm_maps": network.get("apply_layernorm", True),
        "out_indices": tuple(stage - 1 for stage in taken_stages(network)),
    }
    return Whole(checkpoint.source, "dinov2_base_patch14", options, weights, head, multiple=patch, left_out=unused)


def _head(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    options = {
        "channels": config.get("fusion_hidden_size", 64),
        "neck_channels": tuple(config.get("neck_hidden_sizes", (48, 96, 192, 384))),
        "head_channels": config.get("head_hidden_size", 32),
    }
    if config.get("depth_estimation_type", "relative") == "metric":
        return options | {"activation": "sigmoid", "min_depth": 0.0, "max_depth": float(config["max_depth"])}
    expect(checkpoint.source, config, {"max_depth": 1})
    relative = depth_options()
    return options | {name: relative[name] for name in ("min_depth", "max_depth")}

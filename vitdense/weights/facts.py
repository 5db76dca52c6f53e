"""What the files beside the tensors say about a network: config.json, preprocessor_config.json, timm's records."""

from collections.abc import Mapping
from typing import Any

from vitdense.contracts import Backbone
from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

# How publishers resize their tables of positions for pictures of another size.
BICUBIC = {"position_interpolation": "bicubic", "position_antialias": False, "position_offset": 0.0}
ANTIALIASED = {**BICUBIC, "position_antialias": True}
BILINEAR = {**ANTIALIASED, "position_interpolation": "bilinear"}

# transformers' names of activations, and ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}


def timm_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Pixel statistics, activation and heads from timm's config.json, whichever of its two forms it has."""
    record: Mapping[str, Any] = checkpoint.config.get("pretrained_cfg", checkpoint.config)
    facts: dict[str, Any] = {name: tuple(record[name]) for name in ("mean", "std") if name in record}
    arguments: Mapping[str, Any] = checkpoint.config.get("model_args", {})
    if arguments.get("act_layer") is not None:
        facts["activation"] = arguments["act_layer"]
    return facts | _heads(arguments.get("num_heads"))


def timm_epsilon(checkpoint: Checkpoint, otherwise: float) -> dict[str, Any]:
    """timm's towers of CLIP norm with 1e-5 and its other ViTs with 1e-6; only the name in config.json tells."""
    name: str | None = checkpoint.config.get("architecture")
    return {"layer_norm_eps": otherwise if name is None else 1e-5 if "_clip_" in name else 1e-6}


def transformers_facts(
    checkpoint: Checkpoint, *, layer_norm_eps: float, activation: str | None = "gelu"
) -> dict[str, Any]:
    """What transformers' files say; where they don't, the others are the defaults of its class."""
    config = checkpoint.config
    facts: dict[str, Any] = {"layer_norm_eps": float(config.get("layer_norm_eps", layer_norm_eps))}
    activation = config.get("hidden_act", activation)
    if activation is not None:
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise WeightsError(f"{checkpoint.source} has hidden_act {activation!r}; known here: {known}")
        facts["activation"] = ACTIVATIONS[activation]
    for name in ("mean", "std"):
        if f"image_{name}" in checkpoint.preprocessor:
            facts[name] = tuple(checkpoint.preprocessor[f"image_{name}"])
    return facts | _heads(config.get("num_attention_heads", config.get("num_heads")))


def _heads(told: int | list[int] | None) -> dict[str, Any]:
    return {} if told is None else {"num_heads": tuple(told) if isinstance(told, list) else told}


def transformers_preprocessor(backbone: Backbone, *, kind: str, size: int) -> dict[str, Any]:
    """The contents of preprocessor_config.json: squares of `size`, normed with the backbone's statistics."""
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"height": size, "width": size},
        # CLIP's would crop 224 pixels of every size.
        "do_center_crop": False,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(backbone.mean),
        "image_std": list(backbone.std),
    }


def timm_record(
    backbone: Backbone, *, architecture: str, model_args: Mapping[str, Any], size: int, classifier: str
) -> dict[str, Any]:
    """The contents of timm's config.json, for `timm.create_model("local-dir:...", pretrained=True)`."""
    channels = len(backbone.mean)
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": backbone.embed_dim,
        "model_args": {"num_classes": 0, "in_chans": channels, **model_args},
        "pretrained_cfg": {
            "input_size": [channels, size, size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": classifier,
        },
    }

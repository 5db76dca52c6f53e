"""RT-DETR, of both versions, and D-FINE as transformers saves them, on RT-DETR's ResNets, HGNetV2 and other networks
that transformers builds."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.inference import of_rtdetr
from vitdense.weights.whole.parts import Part, Parts, Whole, expect, first, named_classes
from vitdense.weights.whole.upernet import other_parts

# From the names that files of transformers have, and those that its models have in memory, to ours.
_SAVED = (
    (r"^model\.", ""),
    (r"^backbone\.model\.", "backbone."),
    (r"^encoder\.encoder\.(\d+)\.", r"encoder.aifi.\1."),
    (r"(self_attn)\.out_proj\.", r"\1.o_proj."),
    (r"(layers\.\d+)\.(fc[12])\.", r"\1.mlp.\2."),
    (r"((?:aifi\.\d+|decoder)\.layers\.\d+\.mlp)\.layers\.0\.", r"\1.fc1."),
    (r"((?:aifi\.\d+|decoder)\.layers\.\d+\.mlp)\.layers\.1\.", r"\1.fc2."),
    (r"^(enc_(?:output|score_head|bbox_head))\.", r"selection.\1."),
)
_HEAD = ("encoder", "decoder", "selection.", "denoising_class_embed.")
# What is made anew for every picture, or known from the options.
IDLE = (r"decoder\.(.*\.)?(anchors|valid_mask|up|reg_scale)$", r".*_points_scale$", r".*\.num_batches_tracked$")
_COSTS = (("label", "class", 2.0), ("box", "bbox", 5.0), ("giou", "giou", 2.0))
_MODELS = {"rt_detr": "rtdetr", "rt_detr_v2": "rtdetr", "d_fine": "dfine"}


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of transformers' RTDetrForObjectDetection, RTDetrV2ForObjectDetection or DFineForObjectDetection."""
    config = checkpoint.config
    levels = config.get("num_feature_levels", 3)
    expect(
        checkpoint.source,
        config,
        {
            "eval_size": None,
            "anchor_image_size": None,
            "learn_initial_query": False,
            "with_box_refine": True,
            "eval_idx": -1,
            "encode_proj_layers": (len(config.get("encoder_in_channels", (512, 1024, 2048))) - 1,),
            "decoder_n_levels": levels,
        },
    )
    parts = Parts(checkpoint.source, renamed(checkpoint.state, _SAVED))
    for pattern in ("class_embed.", "bbox_embed."):  # of the model, which the decoder's are
        for key, tensor in parts.take(pattern).items():
            parts.state.setdefault(f"decoder.{key}", tensor)
    made = other_parts(checkpoint, parts)
    made["options"] |= {
        "mean": _statistic(checkpoint, "image_mean", 0.0),
        "std": _statistic(checkpoint, "image_std", 1.0),
    }
    if config.get("freeze_backbone_batch_norms", True):
        made["options"]["frozen_norm"] = True
    state = head_state(parts)
    name = _MODELS[config["model_type"]]
    options = _options(config) | (_distribution(config) if name == "dfine" else {})
    if config["model_type"] == "rt_detr":
        options |= {"offset_scale": 0.5, "decoder_method": "default"}
    parts.finish()
    return whole_of(checkpoint, made, name, options, state)


def head_state(parts: Parts) -> dict[str, Tensor]:
    """The head's tensors, without those that are made anew."""
    taken = parts.take(*_HEAD)
    return {key: tensor for key, tensor in taken.items() if not any(re.fullmatch(idle, key) for idle in IDLE)}


def whole_of(
    checkpoint: Checkpoint, made: dict[str, Any], name: str, options: dict[str, Any], state: dict[str, Tensor]
) -> Whole:
    """What is left to say: classes by their scores' number, denoising by whether there is an embedding for it."""
    scores = "selection.enc_score_head.weight"
    if scores not in state:
        raise WeightsError(f"{checkpoint.source} lacks the head of its {name}: it has {first(state)}")
    classes = len(state[scores])
    options |= {"num_classes": classes}
    if "denoising_class_embed.weight" not in state:
        options["denoising"] = {**options.get("denoising", {}), "queries": 0}
    head = Part(name, options, state)
    named = named_classes(checkpoint.config, classes)
    inference = of_rtdetr(checkpoint)
    return Whole(checkpoint.source, head=head, classes=named, inference=inference, **{**made, "multiple": 1})


def renamed(state: Mapping[str, Tensor], table: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """The tensors under the names that a table's patterns lead to, one after the other."""
    found = {}
    for key, tensor in state.items():
        name = key
        for pattern, put in table:
            name = re.sub(pattern, put, name)
        found[name] = tensor
    return found


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Under their names and ours, with transformers' defaults."""
    points = config.get("decoder_n_points", 4)
    same = {
        name: config[name]
        for name in (
            "encoder_hidden_dim",
            "encoder_layers",
            "encoder_ffn_dim",
            "hidden_expansion",
            "normalize_before",
            "num_queries",
            "decoder_layers",
            "decoder_ffn_dim",
            "decoder_method",
            "batch_norm_eps",
            "layer_norm_eps",
            "dropout",
        )
        if name in config
    }
    return same | {
        "max_detections": config.get("num_queries", 300),
        "encoder_heads": config.get("encoder_attention_heads", 8),
        "encoder_activation": config.get("encoder_activation_function", "gelu"),
        "position_temperature": config.get("positional_encoding_temperature", 10_000),
        "activation": config.get("activation_function", "silu"),
        "num_levels": config.get("num_feature_levels", 3),
        "hidden_dim": config.get("d_model", 256),
        "decoder_heads": config.get("decoder_attention_heads", 8),
        "decoder_activation": config.get("decoder_activation_function", "relu"),
        "decoder_points": tuple(points) if isinstance(points, list) else points,
        "offset_scale": config.get("decoder_offset_scale", 0.5),
        "matcher": {name: config.get(f"matcher_{theirs}_cost", cost) for name, theirs, cost in _COSTS},
        "label_weight": config.get("weight_loss_vfl", 1.0),
        "box_weight": config.get("weight_loss_bbox", 5.0),
        "giou_weight": config.get("weight_loss_giou", 2.0),
        "varifocal_alpha": config.get("focal_loss_alpha", 0.75),
        "varifocal_gamma": config.get("focal_loss_gamma", 2.0),
        "denoising": {
            "queries": config.get("num_denoising", 100),
            "label_noise": config.get("label_noise_ratio", 0.5),
            "box_noise": config.get("box_noise_scale", 1.0),
        },
    }


def _distribution(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "depth_mult": config.get("depth_mult", 1.0),
        "distribution": {
            "bins": config.get("max_num_bins", 32),
            "reg_scale": config.get("reg_scale", 4.0),
            "up": config.get("up", 0.5),
            "top_values": config.get("top_prob_values", 4),
            "quality_dim": config.get("lqe_hidden_dim", 64),
            "quality_layers": config.get("lqe_layers", 2),
            "fgl_weight": config.get("weight_loss_fgl", 0.15),
            "ddf_weight": config.get("weight_loss_ddf", 1.5),
        },
    }


def _statistic(checkpoint: Checkpoint, name: str, default: float) -> tuple[float, ...]:
    """Pictures are divided by 255 alone, unless the processor beside the weights says more."""
    facts = checkpoint.preprocessor
    return tuple(facts[name]) if facts.get("do_normalize") and name in facts else (default,) * 3

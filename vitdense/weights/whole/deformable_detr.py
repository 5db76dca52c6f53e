"""Deformable DETR as transformers saves it and as its authors do, on ResNets of timm, on Swin, and on whatever else
transformers builds."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.detr_backbones import BACKBONE, backbone_parts, torchvision_parts
from vitdense.weights.whole.inference import of_detr
from vitdense.weights.whole.parts import Part, Parts, Whole, count_of, expect, first, named_classes

# From the names that files of transformers have, and those that its models have in memory, to ours.
_SAVED = (
    (r"^model\.", ""),
    (r"^backbone\.(conv_encoder\.)?model\.", BACKBONE),
    (r"^((?:encoder|decoder)\.layers\.\d+\.)(fc[12]\.)", r"\1mlp.\2"),
    (r"^(decoder\.layers\.\d+\.self_attn)\.out_proj\.", r"\1.o_proj."),
)
# From the authors' names to ours; the norms of their decoder are numbered in another order than they come in.
_ORIGINAL = (
    (r"^backbone\.0\.body\.", BACKBONE),
    (r"^transformer\.", ""),
    (r"^query_embed\.", "query_position_embeddings."),
    (r"^(encoder\.layers\.\d+\.)norm1\.", r"\1self_attn_layer_norm."),
    (r"^(encoder\.layers\.\d+\.)norm2\.", r"\1final_layer_norm."),
    (r"^(decoder\.layers\.\d+\.)norm1\.", r"\1encoder_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+\.)norm2\.", r"\1self_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+\.)norm3\.", r"\1final_layer_norm."),
    (r"(layers\.\d+\.)linear([12])\.", r"\1mlp.fc\2."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"self_attn\.out_proj\.", "self_attn.o_proj."),
)
# Ours hold what the first stage needs in one place; a decoder's heads are the model's.
_OURS = (
    (r"^(enc_output|enc_output_norm|pos_trans|pos_trans_norm)\.", r"first_stage.\1."),
    (r"^decoder\.(class_embed|bbox_embed)\.", r"\1."),
)


def is_of(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of the authors' Deformable DETR."""
    return (
        "transformer.level_embed" in state and "transformer.encoder.layers.0.self_attn.sampling_offsets.bias" in state
    )


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of transformers' DeformableDetrForObjectDetection."""
    config = checkpoint.config
    expect(
        checkpoint.source,
        config,
        {"activation_function": "relu", "position_embedding_type": "sine"},
    )
    parts = Parts(checkpoint.source, renamed(checkpoint.state, _SAVED + _OURS))
    made = backbone_parts(checkpoint, parts)
    options = {
        "num_heads": same_of_both(checkpoint, "encoder_attention_heads", "decoder_attention_heads", 8),
        "mlp_channels": same_of_both(checkpoint, "encoder_ffn_dim", "decoder_ffn_dim", 1024),
        "with_box_refine": bool(config.get("with_box_refine")),
        "encoder_points": config.get("encoder_n_points", 4),
        "decoder_points": config.get("decoder_n_points", 4),
        "dropout": float(config.get("dropout", 0.1)),
        "focal_alpha": config.get("focal_alpha", 0.25),
        "matcher": {name: float(config.get(f"{theirs}_cost", cost)) for name, theirs, cost in _COSTS},
        "label_weight": 1.0,
        "box_weight": float(config.get("bbox_loss_coefficient", 5)),
        "giou_weight": float(config.get("giou_loss_coefficient", 2)),
    }
    queries = config.get("two_stage_num_proposals" if config.get("two_stage") else "num_queries", 300)
    return _whole(checkpoint, parts, made, options | {"num_queries": queries})


_COSTS = (("label", "class", 1), ("box", "bbox", 5), ("giou", "giou", 2))


def read_original(checkpoint: Checkpoint) -> Whole:
    """The parts of a file of the authors', which says nothing of itself but by its tensors: 8 heads are taken for
    granted, as in all that they published."""
    state = renamed(checkpoint.state, _ORIGINAL + _OURS)
    split_products(state)
    parts = Parts(checkpoint.source, state)
    given = sum(state[key].shape[-1] == 1 for key in state if re.fullmatch(r"input_proj\.\d+\.0\.weight", key))
    made = torchvision_parts(checkpoint, parts, out_indices=tuple(range(5 - given, 5)))
    levels, points = len(state["level_embed"]), []
    for kind in ("encoder.layers.0.self_attn", "decoder.layers.0.encoder_attn"):
        points.append(state[f"{kind}.attention_weights.bias"].numel() // (8 * levels))
    queries = state.get("query_position_embeddings.weight")
    options = {
        "mlp_channels": len(state["encoder.layers.0.mlp.fc1.bias"]),
        "with_box_refine": "transformer.decoder.bbox_embed.0.layers.0.weight" in checkpoint.state,
        "encoder_points": points[0],
        "decoder_points": points[1],
        "num_queries": 300 if queries is None else len(queries),
    }
    return _whole(checkpoint, parts, made, options)


def renamed(state: Mapping[str, Tensor], table: tuple[tuple[str, str], ...] = _SAVED + _OURS) -> dict[str, Tensor]:
    """The tensors under the names that a table's patterns lead to, one after the other."""
    found = {}
    for key, tensor in state.items():
        for pattern, put in table:
            key = re.sub(pattern, put, key)
        found[key] = tensor
    return found


def split_products(state: dict[str, Tensor]) -> None:
    """In place: query, key and value of an attention, which the authors keep in one tensor, each under its name."""
    for key in [key for key in state if key.endswith((".in_proj_weight", ".in_proj_bias"))]:
        kind = key.rpartition("_")[2]
        for letter, part in zip("qkv", state.pop(key).chunk(3), strict=True):
            state[key.rpartition(".")[0] + f".{letter}_proj.{kind}"] = part


def _whole(checkpoint: Checkpoint, parts: Parts, made: dict[str, Any], options: dict[str, Any]) -> Whole:
    """What the tensors say of the head is added to its options."""
    state = parts.take(
        "input_proj.", "level_embed", "encoder.", "decoder.", "class_embed.", "bbox_embed.", "first_stage.",
        "query_position_embeddings.", "reference_points.",
    )  # fmt: skip
    parts.finish()
    for needed in ("class_embed.0.weight", "level_embed"):
        if needed not in state:
            raise WeightsError(f"{checkpoint.source} lacks {needed} of its Deformable DETR: it has {first(state)}")
    classes, channels = state["class_embed.0.weight"].shape
    options |= {
        "num_classes": classes,
        "channels": channels,
        "num_feature_levels": len(state["level_embed"]),
        "encoder_layers": count_of(state, r"encoder\.layers\.(\d+)\."),
        "decoder_layers": count_of(state, r"decoder\.layers\.(\d+)\."),
        "two_stage": "first_stage.enc_output.weight" in state,
    }
    head = Part("deformable_detr", options, _heads_of_layers(state, options))
    named = named_classes(checkpoint.config, classes)
    return Whole(checkpoint.source, head=head, classes=named, inference=of_detr(checkpoint), **made)


def _heads_of_layers(state: dict[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """As many classifiers and box heads as ours has: files hold one or many of those that layers share."""
    count = (options["decoder_layers"] if options["with_box_refine"] else 1) + options["two_stage"]
    found = {key: tensor for key, tensor in state.items() if not key.startswith(("class_embed.", "bbox_embed."))}
    for key, tensor in state.items():
        if match := re.fullmatch(r"(class_embed|bbox_embed)\.0\.(.*)", key):
            for index in range(count):
                found[f"{match[1]}.{index}.{match[2]}"] = state.get(f"{match[1]}.{index}.{match[2]}", tensor)
    return found


def same_of_both(checkpoint: Checkpoint, one: str, other: str, default: int) -> int:
    """One number for what the encoder and the decoder have; WeightsError where they differ."""
    sizes = [checkpoint.config.get(name, default) for name in (one, other)]
    if sizes[0] != sizes[1]:
        raise WeightsError(f"{checkpoint.source} has {one} {sizes[0]} and {other} {sizes[1]}; known here: the same")
    return int(sizes[0])

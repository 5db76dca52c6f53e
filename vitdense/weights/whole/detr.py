"""DETR as transformers saves it and as its authors do, for boxes and for masks, on ResNets of timm, on Swin, and on
whatever else transformers builds."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.deformable_detr import renamed, same_of_both, split_products
from vitdense.weights.whole.detr_backbones import BACKBONE, backbone_parts, torchvision_parts
from vitdense.weights.whole.inference import of_detr
from vitdense.weights.whole.parts import Part, Parts, Whole, count_of, expect, first, named_classes

# The mask head's layers, of the authors' and of transformers' files.
_MASKS: tuple[tuple[str, str], ...] = (
    (r"^bbox_attention\.([qk])_linear\.", r"bbox_attention.\1_proj."),
    (r"^mask_head\.lay([12])\.", r"mask_head.conv\1.conv."),
    (r"^mask_head\.gn([12])\.", r"mask_head.conv\1.norm."),
    (r"^mask_head\.out_lay\.", "mask_head.output_conv."),
    *((rf"^mask_head\.lay{i + 3}\.", f"mask_head.fpn_stages.{i}.refine.conv.") for i in range(3)),
    *((rf"^mask_head\.gn{i + 3}\.", f"mask_head.fpn_stages.{i}.refine.norm.") for i in range(3)),
    *((rf"^mask_head\.adapter{i + 1}\.", f"mask_head.fpn_stages.{i}.fpn_adapter.") for i in range(3)),
)
# From the names that files of transformers have, and those that its models have in memory, to ours.
_SAVED = (
    (r"^detr\.", ""),
    (r"^model\.", ""),
    (r"^backbone\.(conv_encoder\.)?model\.", BACKBONE),
    (r"^((?:encoder|decoder)\.layers\.\d+\.)(fc[12]\.)", r"\1mlp.\2"),
    (r"_attn\.out_proj\.", "_attn.o_proj."),
)
# From the authors' names to ours.
_ORIGINAL = (
    (r"^detr\.", ""),
    (r"^backbone\.0\.body\.", BACKBONE),
    (r"^transformer\.", ""),
    (r"^query_embed\.", "query_position_embeddings."),
    (r"^input_proj\.", "input_projection."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    (r"^decoder\.norm\.", "decoder.layernorm."),
    (r"(layers\.\d+\.)norm1\.", r"\1self_attn_layer_norm."),
    (r"^(encoder\.layers\.\d+\.)norm2\.", r"\1final_layer_norm."),
    (r"^(decoder\.layers\.\d+\.)norm2\.", r"\1encoder_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+\.)norm3\.", r"\1final_layer_norm."),
    (r"(layers\.\d+\.)linear([12])\.", r"\1mlp.fc\2."),
    (r"\.multihead_attn\.", ".encoder_attn."),
    (r"_attn\.out_proj\.", "_attn.o_proj."),
)
_COSTS = (("label", "class", 1), ("box", "bbox", 5), ("giou", "giou", 2))
_CLASSES, _FIRST = "class_labels_classifier.weight", "encoder.layers.0.mlp.fc1.bias"


def is_of(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of the authors' DETR, with masks or without."""
    return any(
        f"{root}class_embed.weight" in state
        and f"{root}transformer.decoder.layers.0.multihead_attn.in_proj_weight" in state
        for root in ("", "detr.")
    )


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of transformers' DetrForObjectDetection or DetrForSegmentation."""
    checkpoint = replace(checkpoint, config=_with_backbone(checkpoint.config))
    config = checkpoint.config
    expect(checkpoint.source, config, {"activation_function": "relu", "position_embedding_type": "sine"})
    parts = Parts(checkpoint.source, renamed(checkpoint.state, _SAVED + _MASKS))
    made = backbone_parts(checkpoint, parts)
    auxiliary = bool(config.get("auxiliary_loss"))
    options = {
        "num_heads": same_of_both(checkpoint, "encoder_attention_heads", "decoder_attention_heads", 8),
        "mlp_channels": same_of_both(checkpoint, "encoder_ffn_dim", "decoder_ffn_dim", 2048),
        "dropout": float(config.get("dropout", 0.1)),
        "attention_dropout": float(config.get("attention_dropout", 0.0)),
        "activation_dropout": float(config.get("activation_dropout", 0.0)),
        "nothing_weight": float(config.get("eos_coefficient", 0.1)),
        "matcher": {name: float(config.get(f"{theirs}_cost", cost)) for name, theirs, cost in _COSTS},
        "box_weight": float(config.get("bbox_loss_coefficient", 5)),
        "giou_weight": float(config.get("giou_loss_coefficient", 2)),
        "mask_weight": float(config.get("mask_loss_coefficient", 1)),
        "dice_weight": float(config.get("dice_loss_coefficient", 1)),
        "layer_losses": auxiliary,
        "chained_norm": auxiliary,
    }
    return _whole(checkpoint, parts, made, options)


def read_original(checkpoint: Checkpoint) -> Whole:
    """The parts of a file of the authors', which says nothing of itself but by its tensors: 8 heads are taken for
    granted, as in all that they published, and a last stage that isn't dilated, as in all but those called DC5."""
    state = renamed(checkpoint.state, _ORIGINAL + _MASKS)
    split_products(state)
    if _FIRST not in state:
        raise WeightsError(f"{checkpoint.source} lacks {_FIRST} of its DETR: it has {first(state)}")
    parts = Parts(checkpoint.source, state)
    made = torchvision_parts(checkpoint, parts, out_indices=(1, 2, 3, 4))
    return _whole(
        checkpoint,
        parts,
        made,
        {"mlp_channels": len(state[_FIRST]), "attention_dropout": 0.1, "activation_dropout": 0.1},
    )


def _with_backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    """Older files name a network of timm beside the rest, with `dilation` for a last stage at stride 16."""
    if config.get("backbone_config") or not config.get("use_timm_backbone", True) or not config.get("backbone"):
        return dict(config)
    given = config.get("backbone_kwargs") or {}
    network = {
        "model_type": "timm_backbone",
        "backbone": config["backbone"],
        "out_indices": given.get("out_indices", [1, 2, 3, 4]),
        "output_stride": given.get("output_stride", 16) if config.get("dilation") else None,
    }
    return {**config, "backbone_config": network}


def _whole(checkpoint: Checkpoint, parts: Parts, made: dict[str, Any], options: dict[str, Any]) -> Whole:
    """What the tensors say of the head is added to its options."""
    state = parts.take(
        "input_projection.", "query_position_embeddings.", "encoder.", "decoder.", "class_labels_classifier.",
        "bbox_predictor.", "mask_head.", "bbox_attention.",
    )  # fmt: skip
    parts.finish()
    for needed in (_CLASSES, "query_position_embeddings.weight"):
        if needed not in state:
            raise WeightsError(f"{checkpoint.source} lacks {needed} of its DETR: it has {first(state)}")
    classes = len(state[_CLASSES]) - 1
    queries, channels = state["query_position_embeddings.weight"].shape
    masks = any(key.startswith("mask_head.") for key in state)
    indices = made["options"]["out_indices"]
    if masks and len(indices) != 4:
        raise WeightsError(f"{checkpoint.source} has masks on maps {indices} of its backbone; known here: four maps")
    options |= {
        "num_classes": classes,
        "num_queries": queries,
        "max_detections": queries,
        "channels": channels,
        "encoder_layers": count_of(state, r"encoder\.layers\.(\d+)\."),
        "decoder_layers": count_of(state, r"decoder\.layers\.(\d+)\."),
        "masks": masks,
    }
    head = Part("detr", options, state)
    named = named_classes(checkpoint.config, classes)
    return Whole(checkpoint.source, head=head, classes=named, inference=of_detr(checkpoint), **made)

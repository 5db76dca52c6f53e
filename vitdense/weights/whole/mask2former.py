"""Mask2Former as transformers saves it, on Swin and on whatever else it builds, and as its authors do, on Swin and on
detectron2's ResNets."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.deformable_detr import renamed, split_products
from vitdense.weights.whole.detr_backbones import BACKBONE, backbone_parts, torchvision_parts
from vitdense.weights.whole.inference import of_segments
from vitdense.weights.whole.mmseg import network_options
from vitdense.weights.whole.parts import Part, Parts, Whole, count_of, expect, first, named_classes

_OURS = (
    (r"^(mask2former\.)?model\.", ""),
    (r"^pixel_level_module\.encoder\.", "backbone."),
    (r"^pixel_level_module\.decoder\.", "pixel_decoder."),
    (r"^transformer_module\.decoder\.", "decoder."),
    (r"^transformer_module\.", "decoder."),
    (r"^decoder\.mask_predictor\.mask_embedder\.(\d+)\.0\.", r"decoder.mask_embedder.layers.\1."),
    (r"(layers\.\d+\.)(fc[12]\.)", r"\1mlp.\2"),
    (r"^(decoder\.layers\.\d+\.\w+_attn)\.out_proj\.", r"\1.o_proj."),
    *((rf"^pixel_decoder\.adapter_{i + 1}\.", f"pixel_decoder.laterals.{i}.") for i in range(3)),
    *((rf"^pixel_decoder\.layer_{i + 1}\.", f"pixel_decoder.outputs.{i}.") for i in range(3)),
)
_LAYER = r"^sem_seg_head\.predictor\.transformer_{kind}_layers\.(\d+)\."
# From the authors' names to ours.
_AUTHORS = (
    (r"^sem_seg_head\.pixel_decoder\.(transformer\.)?", "pixel_decoder."),
    (r"^pixel_decoder\.input_proj\.", "pixel_decoder.input_projections."),
    (r"^pixel_decoder\.mask_features\.", "pixel_decoder.mask_projection."),
    (r"^pixel_decoder\.(adapter|layer)_(\d+)\.norm\.", r"pixel_decoder.\1_\2.1."),
    (r"^pixel_decoder\.(adapter|layer)_(\d+)\.weight$", r"pixel_decoder.\1_\2.0.weight"),
    (r"^(pixel_decoder\.encoder\.layers\.\d+\.)norm1\.", r"\1self_attn_layer_norm."),
    (r"^(pixel_decoder\.encoder\.layers\.\d+\.)norm2\.", r"\1final_layer_norm."),
    (r"^(pixel_decoder\.encoder\.layers\.\d+\.)linear([12])\.", r"\1mlp.fc\2."),
    (_LAYER.format(kind="cross_attention") + "norm", r"decoder.layers.\1.cross_attn_layer_norm"),
    (_LAYER.format(kind="cross_attention") + "multihead_attn", r"decoder.layers.\1.cross_attn"),
    (_LAYER.format(kind="self_attention") + "norm", r"decoder.layers.\1.self_attn_layer_norm"),
    (_LAYER.format(kind="self_attention") + "self_attn", r"decoder.layers.\1.self_attn"),
    (_LAYER.format(kind="ffn") + "norm", r"decoder.layers.\1.final_layer_norm"),
    (_LAYER.format(kind="ffn") + "linear", r"decoder.layers.\1.mlp.fc"),
    (r"^sem_seg_head\.predictor\.class_embed\.", "class_predictor."),
    (r"^sem_seg_head\.predictor\.", "decoder."),
    (r"^decoder\.(query_feat|static_query)\.", "decoder.queries_features."),
    (r"^decoder\.query_embed\.", "decoder.queries_embedder."),
    (r"^decoder\.input_proj\.", "decoder.input_projections."),
    (r"^decoder\.decoder_norm\.", "decoder.layernorm."),
    (r"^decoder\.mask_embed\.", "decoder.mask_embedder."),
)
# detectron2's ResNets, to torchvision's names.
_RESNET = (
    (r"^backbone\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"^backbone\.stem\.conv1\.", "backbone.conv1."),
    (r"^(backbone\.res\d\.\d+\.)conv(\d)\.norm\.", r"\1bn\2."),
    (r"^(backbone\.res\d\.\d+\.)shortcut\.norm\.", r"\1downsample.1."),
    (r"^(backbone\.res\d\.\d+\.)shortcut\.", r"\1downsample.0."),
    *((rf"^backbone\.res{i + 1}\.", f"backbone.layer{i}.") for i in range(1, 5)),
)
_CLASSES = "class_predictor.weight"
_WEIGHTS = "pixel_decoder.encoder.layers.0.self_attn.attention_weights.bias"
_NEEDED = (
    _CLASSES,
    _WEIGHTS,
    "decoder.queries_features.weight",
    "decoder.layers.0.mlp.fc1.bias",
    "pixel_decoder.level_embed",
    "pixel_decoder.encoder.layers.0.mlp.fc1.bias",
    "pixel_decoder.mask_projection.weight",
)
_LEVELS, _POINTS = 3, 4
COCO, COCO_THINGS = 133, 80
"""So many classes COCO's things and stuff are, and so many of them, the first, are things."""


def is_of(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of the authors' Mask2Former."""
    layer = "sem_seg_head.predictor.transformer_cross_attention_layers.0.multihead_attn.in_proj_weight"
    return {layer, "sem_seg_head.predictor.class_embed.weight"} <= state.keys()


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of a Mask2Former. Nothing in the files says which of the three tasks it was trained for: it is taken
    for panoptic, unless a user says another."""
    config = checkpoint.config
    wanted = {"activation_function": "relu", "pre_norm": False, "dropout": 0.0}
    expect(checkpoint.source, config, wanted)
    parts = _parts(checkpoint, _OURS)
    made = backbone_parts(checkpoint, parts)
    head, options = _head(checkpoint, parts)
    options["num_heads"] = config.get("num_attention_heads", 8)
    return Whole(
        checkpoint.source,
        head=Part("mask_transformer", options, head),
        classes=named_classes(config, options["num_classes"]),
        inference=of_segments(checkpoint),
        **made,
    )


def read_original(checkpoint: Checkpoint) -> Whole:
    """The parts of a file of the authors', which says nothing of itself but by its tensors: 133 classes are taken for
    COCO's, and pictures of 133 or 80 classes are brought to the size of COCO's."""
    parts = _parts(checkpoint, (*_AUTHORS, *_OURS, *_RESNET))
    if any(key.startswith(f"{BACKBONE}layer1.") for key in parts.state):
        made = torchvision_parts(checkpoint, parts, out_indices=(1, 2, 3, 4))
    else:
        weights = replace(checkpoint, state=parts.take(BACKBONE), config={}, preprocessor={})
        name, network = network_options(weights, "Mask2Former", known=("swin",))
        made = {"backbone": name, "options": network, "weights": weights}
    head, options = _head(checkpoint, parts)
    coco = options["num_classes"] in (COCO, COCO_THINGS)
    if options["num_classes"] == COCO:
        options["stuff"] = tuple(range(COCO_THINGS, COCO))
    options["num_heads"] = len(head[_WEIGHTS]) // (_LEVELS * _POINTS)
    return Whole(
        checkpoint.source,
        head=Part("mask_transformer", options, head),
        classes=named_classes({}, options["num_classes"]),
        inference={"short_side": 800, "long_max": 1333} if coco else {},
        **made,
    )


def _parts(checkpoint: Checkpoint, table: tuple[tuple[str, str], ...]) -> Parts:
    """The tensors by names of a table; products are split in the head alone."""
    state = renamed(checkpoint.state, table)
    body = {key: state.pop(key) for key in list(state) if key.startswith(BACKBONE)}
    split_products(state)
    return Parts(checkpoint.source, {**body, **state})


def _head(checkpoint: Checkpoint, parts: Parts) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The head's tensors, and what they say of its options; of the file nothing is left then."""
    parts.take("criterion.")
    head = parts.take("pixel_decoder.", "decoder.", "class_predictor.")
    parts.finish()
    if missing := [key for key in _NEEDED if key not in head]:
        raise WeightsError(f"{checkpoint.source} lacks {first(missing)} of its Mask2Former: it has {first(head)}")
    return head, {
        **options_of_masks(checkpoint.config, len(head[_CLASSES]) - 1),
        "num_queries": len(head["decoder.queries_features.weight"]),
        "channels": head[_CLASSES].shape[1],
        "mlp_channels": len(head["decoder.layers.0.mlp.fc1.bias"]),
        "decoder_layers": count_of(head, r"decoder\.layers\.(\d+)\."),
        "pixel_channels": head["pixel_decoder.level_embed"].shape[1],
        "encoder_mlp_channels": len(head["pixel_decoder.encoder.layers.0.mlp.fc1.bias"]),
        "encoder_layers": count_of(head, r"pixel_decoder\.encoder\.layers\.(\d+)\."),
        "mask_channels": len(head["pixel_decoder.mask_projection.weight"]),
        "levels": _LEVELS,
        "input_projection": "decoder.input_projections.0.weight" in head,
    }


def options_of_masks(config: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """What config.json says of the losses, and of COCO's 133 classes which are stuff."""
    costs = {name: float(config.get(f"{theirs}_weight", otherwise)) for name, theirs, otherwise in _COSTS}
    named = named_classes(config, classes)
    coco = classes == COCO and named[0] == "person"
    return {
        "num_classes": classes,
        "stuff": tuple(range(COCO_THINGS, COCO)) if coco else (),
        "matcher": costs,
        **{f"{name}_weight": cost for name, cost in costs.items()},
        "nothing_weight": float(config.get("no_object_weight", 0.1)),
        "points": {
            "count": config.get("train_num_points", 12_544),
            "oversampled": float(config.get("oversample_ratio", 3.0)),
            "important": float(config.get("importance_sample_ratio", 0.75)),
        },
    }


_COSTS = (("label", "class", 2.0), ("mask", "mask", 5.0), ("dice", "dice", 5.0))

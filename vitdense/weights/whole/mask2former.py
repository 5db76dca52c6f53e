"""transformers' Mask2FormerForUniversalSegmentation, on Swin, and on whatever else it builds."""

from collections.abc import Mapping
from typing import Any

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.deformable_detr import renamed, split_products
from vitdense.weights.whole.detr_backbones import backbone_parts
from vitdense.weights.whole.inference import of_segments
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
_CLASSES = "class_predictor.weight"
_LEVELS = 3
COCO, COCO_THINGS = 133, 80
"""So many classes COCO's things and stuff are, and so many of them, the first, are things."""


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of a Mask2Former. Nothing in the files says which of the three tasks it was trained for: it is taken
    for panoptic, unless a user says another."""
    config = checkpoint.config
    wanted = {"activation_function": "relu", "pre_norm": False, "dropout": 0.0}
    expect(checkpoint.source, config, wanted)
    state = renamed(checkpoint.state, _OURS)
    body = {key: state.pop(key) for key in list(state) if key.startswith("backbone.")}
    split_products(state)
    parts = Parts(checkpoint.source, {**body, **state})
    made = backbone_parts(checkpoint, parts)
    parts.take("criterion.")
    head = parts.take("pixel_decoder.", "decoder.", "class_predictor.")
    parts.finish()
    if _CLASSES not in head:
        raise WeightsError(f"{checkpoint.source} lacks {_CLASSES} of its Mask2Former: it has {first(head)}")
    classes = len(head[_CLASSES]) - 1
    options = {
        **options_of_masks(config, classes),
        "num_queries": len(head["decoder.queries_features.weight"]),
        "channels": head[_CLASSES].shape[1],
        "num_heads": config.get("num_attention_heads", 8),
        "mlp_channels": len(head["decoder.layers.0.mlp.fc1.bias"]),
        "decoder_layers": count_of(head, r"decoder\.layers\.(\d+)\."),
        "pixel_channels": head["pixel_decoder.level_embed"].shape[1],
        "encoder_mlp_channels": len(head["pixel_decoder.encoder.layers.0.mlp.fc1.bias"]),
        "encoder_layers": count_of(head, r"pixel_decoder\.encoder\.layers\.(\d+)\."),
        "mask_channels": len(head["pixel_decoder.mask_projection.weight"]),
        "levels": _LEVELS,
        "input_projection": "decoder.input_projections.0.weight" in head,
    }
    named = named_classes(config, classes)
    return Whole(
        checkpoint.source,
        head=Part("mask_transformer", options, head),
        classes=named,
        inference=of_segments(checkpoint),
        **made,
    )


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

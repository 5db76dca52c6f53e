"""mmseg's UperNet on Swin and BEiT: a state dict by itself, whose shapes say how it was built."""

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import detect
from vitdense.weights.facts import IMAGENET
from vitdense.weights.families import DIALECTS
from vitdense.weights.resizing import BIAS_TABLE
from vitdense.weights.rows import Row, translate
from vitdense.weights.whole.parts import Part, Parts, Whole, count_of, first, named_classes
from vitdense.weights.whole.upernet import head_options


def _unit(place: str) -> tuple[Row, Row]:
    """A convolution and its norm."""
    return Row(f"{place}.conv.*", f"{place}.conv.*"), Row(f"{place}.bn.*", f"{place}.batch_norm.*")


HEAD = (
    *_unit("decode_head.psp_modules.{i}.1"),
    *_unit("decode_head.bottleneck"),
    *_unit("decode_head.lateral_convs.{i}"),
    *_unit("decode_head.fpn_convs.{i}"),
    *_unit("decode_head.fpn_bottleneck"),
    *_unit("auxiliary_head.convs.{i}"),
    Row("decode_head.conv_seg.*", "decode_head.classifier.*"),
    Row("auxiliary_head.conv_seg.*", "auxiliary_head.classifier.*"),
)
# Which scales a number of pools stands for.
_SCALES = {4: (1, 2, 3, 6), 3: (1, 2, 3), 2: (1, 2), 1: (1,)}


def is_of(state: Mapping[str, Tensor]) -> bool:
    """Whether these are mmseg's names."""
    return {"decode_head.conv_seg.weight", "decode_head.fpn_bottleneck.conv.weight"} <= state.keys()


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of a UperNet."""
    parts = Parts(checkpoint.source, dict(checkpoint.state))
    pyramid = parts.take("backbone.fpn", strip="backbone.")
    weights = replace(checkpoint, state=parts.take("backbone."))
    head = translate(parts.take("decode_head.", "auxiliary_head."), HEAD, "in")
    parts.finish(head.strange)
    name, options = network_options(weights, "UperNet")
    return Whole(
        checkpoint.source,
        name,
        options,
        weights,
        _head(head.state, checkpoint.source),
        adapter=Part("feature2pyramid", {}, pyramid) if pyramid else None,
        multiple=2 * options["patch_size"] if pyramid else 1,
        classes=named_classes({}, head.state["decode_head.classifier.weight"].shape[0]),
    )


def network_options(
    weights: Checkpoint, kind: str, known: tuple[str, ...] = ("swin", "beit")
) -> tuple[str, dict[str, Any]]:
    """Name and options of the Swin or BEiT whose tensors these are; WeightsError where a model of this kind stands on
    what isn't known."""
    dialect, root = detect(weights.state, DIALECTS, weights.source)
    if dialect.family not in known:
        raise WeightsError(f"{weights.source} is a {kind} on {dialect.family}; known here: {' and '.join(known)}")
    ours = dialect.convert(weights.state, root)[0].state
    return {"swin": _swin, "vit": _beit}[dialect.architecture](ours)


def _head(state: dict[str, Tensor], source: str) -> Part:
    pools = count_of(state, r"decode_head\.psp_modules\.(\d+)\.")
    if pools not in _SCALES or "decode_head.classifier.weight" not in state:
        raise WeightsError(f"{source} lacks the head of its UperNet: it has {first(state)}")
    auxiliary = "auxiliary_head.classifier.weight" in state
    said = {"pool_scales": _SCALES[pools], "auxiliary_num_convs": count_of(state, r"auxiliary_head\.convs\.(\d+)\.")}
    return Part("upernet", head_options(said, state, auxiliary=auxiliary), state)


def _swin(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    stages = count_of(state, r"layers\.(\d+)\.")
    tables = [state[f"layers.{i}.blocks.0.attn.{BIAS_TABLE}"] for i in range(stages)]
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    return "swin_tiny", {
        "embed_dim": width,
        "depths": tuple(count_of(state, rf"layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)),
        "num_heads": tuple(table.shape[1] for table in tables),
        "window": (isqrt(tables[0].shape[0]) + 1) // 2,
        "patch_size": patch,
        "mlp_ratio": state["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / width,
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in state,
        "out_indices": tuple(i for i in range(stages) if f"norms.{i}.weight" in state),
        "always_shift": True,
    }


def _beit(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Of the authors' names, which mmseg took over with its configs: pixels are normed with ImageNet's statistics."""
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    depth = count_of(state, r"blocks\.(\d+)\.")
    table = state[f"blocks.0.attn.{BIAS_TABLE}"]
    return "beit_base_patch16", {
        "embed_dim": width,
        "depth": depth,
        "num_heads": table.shape[1],
        "patch_size": patch,
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "norm_maps": False,
        # Blocks 3, 5, 7 and 11 of twelve, 7, 11, 15 and 23 of twenty-four.
        "out_indices": tuple(depth * part // 6 - 1 for part in (2, 3, 4, 6)),
        **IMAGENET,
    }

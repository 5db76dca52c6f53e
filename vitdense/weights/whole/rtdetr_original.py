"""RT-DETR, of both versions, and D-FINE in the files of their authors, which say nothing of themselves but by their
tensors (https://github.com/lyuwenyu/RT-DETR, https://github.com/Peterande/D-FINE)."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.parts import Parts, Whole, count_of
from vitdense.weights.whole.rtdetr import IDLE, head_state, renamed, whole_of

_HEADS = 8
"""Of all that they published, in encoder and decoder."""
_RESNET = (
    (r"^backbone\.conv1\.conv1_1\.", "backbone.embedder.embedder.0."),
    (r"^backbone\.conv1\.conv1_2\.", "backbone.embedder.embedder.1."),
    (r"^backbone\.conv1\.conv1_3\.", "backbone.embedder.embedder.2."),
    (r"^backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.", r"backbone.encoder.stages.\1.layers.\2."),
    (r"^(backbone\..*)\.short\.conv\.(conv|norm)\.", r"\1.shortcut.1.\2."),
    (r"^(backbone\..*)\.short\.", r"\1.shortcut."),
    (r"^(backbone\..*)\.branch2a\.", r"\1.layer.0."),
    (r"^(backbone\..*)\.branch2b\.", r"\1.layer.1."),
    (r"^(backbone\..*)\.branch2c\.", r"\1.layer.2."),
)
_HGNET = (
    (r"^backbone\.stem\.", "backbone.embedder."),
    (r"^backbone\.stages\.", "backbone.encoder.stages."),
)
_UNITS = ((r"^(backbone\..*)\.conv\.", r"\1.convolution."), (r"^(backbone\..*)\.(?:norm|bn)\.", r"\1.normalization."))
_ENCODER = (
    (r"^encoder\.encoder\.(\d+)\.", r"encoder.aifi.\1."),
    (r"^(encoder\.aifi\..*)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"^(encoder\.aifi\..*)\.norm2\.", r"\1.final_layer_norm."),
    (r"^encoder\.input_proj\.(\d+)\.(?:conv|0)\.", r"encoder_input_proj.\1.0."),
    (r"^encoder\.input_proj\.(\d+)\.(?:norm|1)\.", r"encoder_input_proj.\1.1."),
    (r"^(encoder\.[fp][pa]n_blocks\.\d+)\.cv1\.", r"\1.conv1."),
    (r"^(encoder\.[fp][pa]n_blocks\.\d+)\.cv2\.0\.", r"\1.csp_rep1."),
    (r"^(encoder\.[fp][pa]n_blocks\.\d+)\.cv2\.1\.", r"\1.conv2."),
    (r"^(encoder\.[fp][pa]n_blocks\.\d+)\.cv3\.0\.", r"\1.csp_rep2."),
    (r"^(encoder\.[fp][pa]n_blocks\.\d+)\.cv3\.1\.", r"\1.conv3."),
    (r"^(encoder\.[fp][pa]n_blocks\.\d+)\.cv4\.", r"\1.conv4."),
    (r"^(encoder\.downsample_convs\.\d+)\.0\.cv", r"\1.conv"),
)
_DECODER = (
    (r"^decoder\.input_proj\.(\d+)\.(?:conv|0)\.", r"decoder_input_proj.\1.0."),
    (r"^decoder\.input_proj\.(\d+)\.(?:norm|1)\.", r"decoder_input_proj.\1.1."),
    (r"^decoder\.(denoising_class_embed)\.", r"\1."),
    (r"^decoder\.enc_output\.(?:proj|0)\.", "selection.enc_output.0."),
    (r"^decoder\.enc_output\.(?:norm|1)\.", "selection.enc_output.1."),
    (r"^decoder\.(enc_score_head|enc_bbox_head)\.", r"selection.\1."),
    (r"^decoder\.dec_score_head\.", "decoder.class_embed."),
    (r"^decoder\.dec_bbox_head\.", "decoder.bbox_embed."),
    (r"^decoder\.decoder\.", "decoder."),
    (r"^(decoder\.layers\.\d+)\.cross_attn\.", r"\1.encoder_attn."),
    (r"^(decoder\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+)\.norm2\.", r"\1.encoder_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+)\.norm3\.", r"\1.final_layer_norm."),
)
_BOTH = ((r"(layers\.\d+)\.linear([12])\.", r"\1.mlp.fc\2."), (r"(self_attn)\.out_proj\.", r"\1.o_proj."))


def is_of(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of the authors' RT-DETR or D-FINE."""
    return "decoder.dec_score_head.0.weight" in state and "decoder.enc_score_head.weight" in state


def read_original(checkpoint: Checkpoint) -> Whole:
    """The parts of a file of theirs, whose encoder's activations are those of all that they published."""
    points = _points(checkpoint.state)
    given = {key: tensor for key, tensor in checkpoint.state.items() if not any(re.fullmatch(i, key) for i in IDLE)}
    distributed = any("pre_bbox_head" in key for key in given)
    resnet = "backbone.conv1.conv1_1.conv.weight" in given
    state = renamed(given, (_RESNET if resnet else _HGNET) + _UNITS + _ENCODER + _DECODER + _BOTH)
    for key in [key for key in state if key.endswith((".in_proj_weight", ".in_proj_bias"))]:
        road, _, kind = key.rpartition(".in_proj_")
        for name, part in zip("qkv", state.pop(key).chunk(3), strict=True):
            state[f"{road}.{name}_proj.{kind}"] = part
    parts = Parts(checkpoint.source, state)
    body = parts.take("backbone.")
    head = head_state(parts)
    parts.finish()
    levels = count_of(head, r"encoder_input_proj\.(\d+)\.")
    network = _resnet(body) if resnet else _hgnet(body)
    network["out_indices"] = list(range(5 - levels, 5))
    facts = {"backbone_config": {"model_type": "rt_detr_resnet" if resnet else "hgnet_v2", **network}}
    made: dict[str, Any] = {
        "backbone": f"hf/{facts['backbone_config']['model_type']}",
        "weights": replace(checkpoint, state=body, config=facts, preprocessor={}),
        "options": {
            "out_indices": tuple(range(4 - levels, 4)),
            "mean": (0.0,) * 3,
            "std": (1.0,) * 3,
            "frozen_norm": True,
        },
    }

    options = _options(checkpoint.source, head, points)
    name = "rtdetr"
    if distributed:
        name = "dfine"
        options["distribution"] = _distribution(checkpoint.state, head)
    return whole_of(checkpoint, made, name, options, head)


def _points(state: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """How many points of each level are read, by a buffer of 1 / points; None where all are the same."""
    scales = state.get("decoder.decoder.layers.0.cross_attn.num_points_scale")
    if scales is None:
        return None
    found: list[int] = []
    while sum(found) < len(scales):
        found.append(round(1 / float(scales[sum(found)])))
    return tuple(found)


def _options(source: str, head: Mapping[str, Tensor], points: tuple[int, ...] | None) -> dict[str, Any]:
    levels = count_of(head, r"encoder_input_proj\.(\d+)\.")
    if points is None:
        levels = max(levels, count_of(head, r"decoder_input_proj\.(\d+)\."))
        total = len(head["decoder.layers.0.encoder_attn.attention_weights.bias"]) // _HEADS
        points = (total // levels,) * levels
    blocks = {"csp": "encoder.fpn_blocks.0.bottlenecks", "elan": "encoder.fpn_blocks.0.csp_rep1.bottlenecks"}
    fusion = "elan" if any(key.startswith(blocks["elan"]) for key in head) else "csp"
    depth = count_of(head, re.escape(blocks[fusion]) + r"\.(\d+)\.")
    if not depth:
        raise WeightsError(f"{source} has no blocks that join its levels: {blocks[fusion]} is missing")
    width = len(head["encoder_input_proj.0.0.weight"])
    inner = len(head[f"{blocks[fusion]}.0.conv1.conv.weight"])
    return {
        "encoder_hidden_dim": width,
        "encoder_heads": _HEADS,
        "encoder_layers": count_of(head, r"encoder\.aifi\.0\.layers\.(\d+)\."),
        "encoder_ffn_dim": len(head["encoder.aifi.0.layers.0.mlp.fc1.bias"]),
        "fusion": fusion,
        "hidden_expansion": inner / width * (2 if fusion == "elan" else 1),
        "depth_mult": depth / 3,
        "num_levels": len(points),
        "hidden_dim": len(head["selection.enc_output.0.bias"]),
        "decoder_layers": count_of(head, r"decoder\.layers\.(\d+)\."),
        "decoder_heads": _HEADS,
        "decoder_ffn_dim": len(head["decoder.layers.0.mlp.fc1.bias"]),
        "decoder_points": points,
    }


def _distribution(state: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, Any]:
    quality = "decoder.lqe_layers.0.reg_conf.layers."
    found = {
        "bins": len(head["decoder.bbox_embed.0.layers.2.bias"]) // 4 - 1,
        "top_values": head[f"{quality}0.weight"].shape[1] // 4 - 1,
        "quality_dim": len(head[f"{quality}0.weight"]),
        "quality_layers": count_of(head, re.escape(quality) + r"(\d+)\."),
    }
    stated = {name: state[f"decoder.{name}"] for name in ("up", "reg_scale") if f"decoder.{name}" in state}
    return found | {name: float(tensor.flatten()[0]) for name, tensor in stated.items()}


def _resnet(body: Mapping[str, Tensor]) -> dict[str, Any]:
    """What transformers builds the same ResNet with."""
    stages = "backbone.encoder.stages."
    bottleneck = f"{stages}0.layers.0.layer.2.convolution.weight" in body
    last = 2 if bottleneck else 1
    return {
        "num_channels": body["backbone.embedder.embedder.0.convolution.weight"].shape[1],
        "embedding_size": len(body["backbone.embedder.embedder.2.convolution.weight"]),
        "hidden_sizes": [len(body[f"{stages}{i}.layers.0.layer.{last}.convolution.weight"]) for i in range(4)],
        "depths": [count_of(body, rf"backbone\.encoder\.stages\.{i}\.layers\.(\d+)\.") for i in range(4)],
        "layer_type": "bottleneck" if bottleneck else "basic",
    }


def _hgnet(body: Mapping[str, Tensor]) -> dict[str, Any]:
    """What transformers builds the same HGNetV2 with."""
    stages = [f"backbone.encoder.stages.{i}." for i in range(4)]
    firsts, inputs, light, sides = [], [], [], []
    for stage in stages:
        block = f"{stage}blocks.0.layers.0."
        light.append(f"{block}conv1.convolution.weight" in body)
        first = body[f"{block}conv1.convolution.weight" if light[-1] else f"{block}convolution.weight"]
        spread = body[f"{block}conv2.convolution.weight"] if light[-1] else first
        firsts.append(len(first))
        inputs.append(first.shape[1])
        sides.append(spread.shape[-1])
    outputs = [len(body[f"{stage}blocks.0.aggregation.1.convolution.weight"]) for stage in stages]
    stem = [body[f"backbone.embedder.{name}.convolution.weight"] for name in ("stem1", "stem4")]
    patterns = [re.escape(stage) for stage in stages]
    return {
        "stem_channels": [stem[0].shape[1], len(stem[0]), len(stem[1])],
        "stage_in_channels": inputs,
        "stage_mid_channels": firsts,
        "stage_out_channels": outputs,
        "hidden_sizes": outputs,
        "stage_num_blocks": [count_of(body, pattern + r"blocks\.(\d+)\.") for pattern in patterns],
        "stage_numb_of_layers": [count_of(body, pattern + r"blocks\.0\.layers\.(\d+)\.") for pattern in patterns],
        "stage_downsample": [f"{stage}downsample.convolution.weight" in body for stage in stages],
        "stage_light_block": light,
        "stage_kernel_size": sides,
        "use_learnable_affine_block": any(".lab." in key for key in body),
    }

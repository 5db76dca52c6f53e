"""DPT under its authors' names, as DPT and MiDaS have it (https://github.com/isl-org/DPT): on a ViT, and hybrid."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.facts import HALF
from vitdense.weights.rows import Row, translate
from vitdense.weights.whole.dpt import depth_options, segmentation_options
from vitdense.weights.whole.parts import Part, Parts, Whole, count_of, first, named_classes

_MODEL = "pretrained.model."
_STRIDES = (4, 8, 16, 32)
# Their fusion blocks count from the finest, transformers' and ours from the coarsest.
_FUSION = tuple(
    Row(f"scratch.refinenet{4 - i}.{theirs}.*", f"neck.fusion_stage.layers.{i}.{ours}.*")
    for i in range(4)
    for theirs, ours in (
        ("out_conv", "projection"),
        *(
            (f"resConfUnit{unit}.{part}{number}", f"residual_layer{unit}.{name}{number}")
            for unit in (1, 2)
            for part, name in (("conv", "convolution"), ("bn", "batch_norm"))
            for number in (1, 2)
        ),
    )
)
HEAD = (
    Row("scratch.layer{i+1}_rn.weight", "neck.convs.{i}.weight"),
    *_FUSION,
    Row("scratch.output_conv.*", "head.head.*"),
    Row("auxlayer.*", "auxiliary_head.head.*"),
)
READOUT = (
    Row("pretrained.act_postprocess{i+1}.0.project.0.*", "readout_projects.{i}.0.*"),
    Row("pretrained.act_postprocess{i+1}.3.*", "layers.{i}.projection.*"),
    Row("pretrained.act_postprocess{i+1}.4.*", "layers.{i}.resize.*"),
)


def is_of(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the authors' names."""
    signs = {"scratch.refinenet1.out_conv.weight", f"{_MODEL}pos_embed", f"{_MODEL}blocks.0.attn.qkv.weight"}
    return signs <= state.keys()


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of a DPT."""
    parts = Parts(checkpoint.source, dict(checkpoint.state))
    # The classifier that the transformer was trained with is still there.
    left_out = list(parts.take(f"{_MODEL}head.", f"{_MODEL}head_dist.", f"{_MODEL}pre_logits."))
    backbone = parts.take(_MODEL, strip=_MODEL)
    readout = translate(parts.take("pretrained.act_postprocess"), READOUT, "in")
    scratch = translate(parts.take("scratch.", "auxlayer."), HEAD, "in")
    parts.finish([*readout.strange, *scratch.strange])
    head = _head(scratch.state, left_out, checkpoint)
    hybrid = "patch_embed.backbone.stem.conv.weight" in backbone
    return Whole(
        checkpoint.source,
        "vit_base_r50_s16" if hybrid else "vit_base_patch16",
        _options(backbone, hybrid=hybrid),
        Checkpoint(backbone, checkpoint.source),
        head,
        adapter=_adapter(readout.state, scratch.state),
        multiple=_STRIDES[-1],
        classes=named_classes({}, head.options.get("num_classes", 0)),
        left_out=tuple(left_out),
    )


def _options(state: Mapping[str, Tensor], *, hybrid: bool) -> dict[str, Any]:
    """How the transformer was built, as far as its tensors tell; heads have 64 channels in all that is published."""
    width, depth = state["cls_token"].shape[-1], count_of(state, r"blocks\.(\d+)\.")
    patch = 16 if hybrid else state["patch_embed.proj.weight"].shape[-1]
    options = {
        "embed_dim": width,
        "depth": depth,
        "num_heads": max(width // 64, 1),
        "patch_size": patch,
        "image_size": isqrt(state["pos_embed"].shape[1] - 1) * patch,
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "layer_norm_eps": 1e-6,
        "norm_maps": False,
        "position_interpolation": "bilinear",
        "position_antialias": False,
        "out_indices": _hooks(depth),
        **HALF,
    }
    if not hybrid:
        return options
    resnet = "patch_embed.backbone.stages."
    stages = count_of(state, r"patch_embed\.backbone\.stages\.(\d+)\.")
    layers = tuple(count_of(state, rf"patch_embed\.backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in range(stages))
    width = state[f"{resnet}0.blocks.0.conv3.weight"].shape[0] // 4
    blocks = tuple(stages + i for i in _hooks(depth)[2:])
    return options | {"stem_layers": layers, "stem_width": width, "out_indices": (0, 1, *blocks)}


def _hooks(depth: int) -> tuple[int, ...]:
    """The blocks that are taken: the last of each quarter, 2, 5, 8 and 11 of twelve."""
    return tuple((i + 1) * depth // 4 - 1 for i in range(4))


def _adapter(readout: Mapping[str, Tensor], scratch: Mapping[str, Tensor]) -> Part:
    channels = tuple(scratch[f"neck.convs.{i}.weight"].shape[1] for i in range(4))
    projects = any(key.startswith("readout_projects.") for key in readout)
    return Part("reassemble", {"channels": channels, "readout": "project" if projects else "ignore"}, readout)


def _head(state: dict[str, Tensor], left_out: list[str], checkpoint: Checkpoint) -> Part:
    unused = "neck.fusion_stage.layers.0.residual_layer1."
    left_out += [key for key in state if key.startswith(unused)]
    state = {key: tensor for key, tensor in state.items() if not key.startswith(unused)}
    needed = {"head.head.0.weight", "head.head.4.weight", *(f"neck.convs.{i}.weight" for i in range(4))}
    if not needed <= state.keys():
        raise WeightsError(f"{checkpoint.source} lacks what is called here {first(needed - state.keys())}")
    options: dict[str, Any] = {
        "channels": state["neck.convs.0.weight"].shape[0],
        "batch_norm": any(".batch_norm1." in key for key in state),
        "bias": "neck.fusion_stage.layers.0.residual_layer2.convolution1.bias" in state,
    }
    if "head.head.1.running_mean" in state:
        auxiliary = any(key.startswith("auxiliary_head.") for key in state)
        return Part("dpt", options | segmentation_options({}, state, auxiliary=auxiliary), state)
    return Part("dpt_depth", options | depth_options(), state)

"""Hybrids of BiT's ResNet and a vision transformer: AugReg's and the first release, and the backbone of DPT-hybrid."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.errors import WeightsError
from vitdense.layers.bit import STEM_STRIDE
from vitdense.weights import vit
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, Export, State
from vitdense.weights.facts import HALF, timm_facts, timm_record, transformers_facts
from vitdense.weights.resizing import position_slots
from vitdense.weights.rows import Change, Row

_RESNET = "patch_embed.backbone"
_STAGES = f"{_RESNET}.stages"
_BLOCK = _STAGES + ".{i}.blocks.{j}"

# ---------------------------------------------------------------- tables

# A stem without stages has one name less in timm.
TIMM_STEM = (
    Row((f"{_RESNET}.conv.*", f"{_RESNET}.stem.conv.*"), f"{_RESNET}.stem.conv.*"),
    Row((f"{_RESNET}.norm.*", f"{_RESNET}.stem.norm.*"), f"{_RESNET}.stem.norm.*"),
    *vit.TIMM,
)

_LAYER = "embeddings.backbone.bit.encoder.stages.{i}.layers.{j}"
TRANSFORMERS = (
    Row("embeddings.backbone.bit.embedder.convolution.*", f"{_RESNET}.stem.conv.*"),
    Row("embeddings.backbone.bit.embedder.norm.*", f"{_RESNET}.stem.norm.*"),
    Row(f"{_LAYER}.*", f"{_BLOCK}.*"),
    Row("embeddings.projection.*", "patch_embed.proj.*"),
    *vit.TRANSFORMERS,
)

_kernel = Change(lambda kernel: kernel.permute(3, 2, 0, 1))
_flat = Change(Tensor.flatten)


def _jax_unit(theirs: str, ours: str) -> tuple[Row, ...]:
    """A convolution and its norm, whose scale and bias have one place for each dimension of a map."""
    conv, norm = (theirs.replace("?", kind) for kind in ("conv", "gn"))
    return (
        Row(f"{conv}/kernel", ours.replace("?", "conv") + ".weight", change=_kernel),
        Row(f"{norm}/scale", ours.replace("?", "norm") + ".weight", change=_flat),
        Row(f"{norm}/bias", ours.replace("?", "norm") + ".bias", change=_flat),
    )


_UNIT = "block{i+1}/unit{j+1}"
JAX = (
    *_jax_unit("?_root", f"{_RESNET}.stem.?"),
    *_jax_unit(_UNIT + "/?{k}", _BLOCK + ".?{k}"),
    *_jax_unit(_UNIT + "/?_proj", _BLOCK + ".downsample.?"),
    *vit.JAX,
)

# ---------------------------------------------------------------- options


def _stored_size(state: State) -> dict[str, Any]:
    """The image size whose grid the position table has: a cell covers the projection's kernel of the ResNet's cells."""
    table, kernel, slots = state.get("pos_embed"), state.get("patch_embed.proj.weight"), position_slots(state)
    if table is None or kernel is None or slots is None:
        return {}
    stages = {key.removeprefix(f"{_STAGES}.").split(".")[0] for key in state if key.startswith(f"{_STAGES}.")}
    cell = kernel.shape[-1] * STEM_STRIDE << max(len(stages) - 1, 0)
    return {"image_size": math.isqrt(table.shape[1] - slots) * cell}


def _timm(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    return {**timm_facts(checkpoint), **_stored_size(state)}


def _jax(_: Checkpoint, state: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-6, **HALF, **_stored_size(state)}


# What shows in no tensor's shape and is built in here, and what transformers takes where its config says nothing.
_BIT: dict[str, tuple[Any, Any]] = {
    "layer_type": ("bottleneck", "preactivation"),
    "global_padding": ("SAME", None),
    "embedding_dynamic_padding": (True, False),
    "output_stride": (32, 32),
    "num_groups": (32, 32),
    "hidden_act": ("relu", "relu"),
}


def _transformers(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    resnet: Mapping[str, Any] = checkpoint.config.get("backbone_config") or {}
    for name, (wanted, default) in _BIT.items() if resnet else ():
        given = resnet.get(name, default)
        if str(given).lower() != str(wanted).lower():
            raise WeightsError(f"{checkpoint.source} has a ResNet with {name} {given!r}; known here: {wanted!r}")
    facts = transformers_facts(checkpoint, layer_norm_eps=1e-12)
    resizing = {"position_interpolation": "bilinear", "position_antialias": False}
    # What DPT's neck takes from the blocks isn't normed.
    return {**facts, **resizing, "norm_maps": False, **_stored_size(state)}


# ---------------------------------------------------------------- and back

# timm has the ResNet in an architecture's name: its stages' layers, and the pixels of a token.
_ARCHITECTURES: dict[str, tuple[tuple[int, ...], int]] = {
    "vit_base_r50_s16_224": ((3, 4, 9), 16),
    "vit_small_r26_s32_224": ((2, 2, 2, 2), 32),
    "vit_large_r50_s32_224": ((3, 4, 6, 3), 32),
    "vit_tiny_r_s16_p8_224": ((), 32),
}


def _timm_files(architecture: str, backbone: Backbone, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    arguments = {name: options[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    pool = "avg" if options["pool"] == "mean" else "token"
    arguments |= {"img_size": options["image_size"], "dynamic_img_size": True, "global_pool": pool, "fc_norm": False}
    record = timm_record(
        backbone, architecture=architecture, model_args=arguments, size=options["image_size"], classifier="head"
    )
    record["pretrained_cfg"]["first_conv"] = f"{_RESNET}.stem.conv" if options["stem_layers"] else f"{_RESNET}.conv"
    return {"config.json": record}


def _timm_notes(options: dict[str, Any]) -> list[str]:
    notes = [f"sizes that don't divide by {options['patch_size']} are padded in another way there"]
    if (options["position_interpolation"], options["position_antialias"]) != ("bicubic", True):
        size = options["image_size"]
        notes.append(f"positions are resized in another way there, for pictures of another size than {size}")
    return notes


def _timm_dialect(architecture: str, layers: tuple[int, ...], patch: int) -> Dialect:
    stem = (f"{_RESNET}.conv.weight", f"{_RESNET}.stem.conv.weight")
    return Dialect(
        "timm",
        "hybrid",
        "hybrid",
        has=(f"{_BLOCK}.conv1.weight" if layers else stem, "blocks.{i}.attn.qkv.weight"),
        table=vit.TIMM if layers else TIMM_STEM,
        left_out=("head.*", "fc_norm.*", "pre_logits.*"),
        options=_timm,
        export=Export(
            partial(_timm_files, architecture),
            says=frozenset({"embed_dim", "depth", "num_heads", "mlp_ratio", "image_size", "pool"}),
            fixed={"stem_layers": layers, "patch_size": patch},
            notes=_timm_notes,
        ),
    )


# ---------------------------------------------------------------- dialects

DIALECTS = (
    Dialect(
        "transformers",
        "DPT-hybrid",
        "hybrid",
        has=("embeddings.backbone.bit.embedder.convolution.weight", "encoder.layer.{i}.layernorm_before.weight"),
        table=TRANSFORMERS,
        left_out=("pooler.*",),
        options=_transformers,
    ),
    Dialect(
        "jax",
        "hybrid",
        "hybrid",
        has=("conv_root/kernel", "Transformer/encoderblock_{i}/LayerNorm_0/scale"),
        table=JAX,
        left_out=("head/*", "pre_logits/*"),
        options=_jax,
    ),
    *(_timm_dialect(name, layers, patch) for name, (layers, patch) in _ARCHITECTURES.items()),
)

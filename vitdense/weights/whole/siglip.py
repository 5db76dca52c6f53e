"""transformers' SiglipModel and Siglip2Model (https://arxiv.org/abs/2303.15343, https://arxiv.org/abs/2502.14786).

SigLIP 2 was published in two forms: for pictures of one size its files are SigLIP's; for pictures of any shape
("NaFlex") the patches are cut out beforehand. The latter are taken here as ordinary pictures, one shape a batch: with
positions resized as published, but without padded patches, whose mask no tower here has.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitdense.weights.contents import Checkpoint
from vitdense.weights.rows import Change, Row
from vitdense.weights.whole.clip import (
    POSITION_IDS,
    TEXT,
    number,
    part_of,
    ratio,
    take_head,
    take_tower,
    text_options,
    vision_options,
)
from vitdense.weights.whole.parts import Part, Parts, Whole, count_of, expect, square
from vitdense.weights.whole.pictures import of_siglip, of_siglip2

_row = Change(number.into, torch.atleast_1d)
HEAD = (
    *TEXT,
    Row("text_model.head.*", "text_proj.*"),
    Row("logit_scale", "logit_scale", change=_row),
    Row("logit_bias", "logit_bias", change=_row),
)
_VOCABULARY = 32000
# Said here, so that a pool whose tensors are absent is missed.
_POOL = {"pool": "attention"}
_SHARED = {"num_attention_heads": 12, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of a SiglipModel: pictures of one size, others with resized positions."""
    tower, vision, made = _parts(checkpoint)
    options = vision_options(tower, vision)
    return Whole(options=options | _POOL, preprocess=of_siglip(checkpoint, options["image_size"]), **made)


def read_2(checkpoint: Checkpoint) -> Whole:
    """The parts of a Siglip2Model; its pictures are taken whole, at any size that whole patches cover."""
    tower, vision, made = _parts(checkpoint)
    patch = square(checkpoint.source, vision.get("patch_size", 16))
    options = _options_of_patches(tower.state, vision, patch)
    preprocess = of_siglip2(checkpoint, patch, options["image_size"] // patch)
    return Whole(options=options | _POOL, preprocess=preprocess, **made)


def _parts(checkpoint: Checkpoint) -> tuple[Checkpoint, Mapping[str, Any], dict[str, Any]]:
    """The picture tower, its config, and what both kinds have in common."""
    parts = Parts(checkpoint.source, dict(checkpoint.state))
    idle = tuple(parts.take(*POSITION_IDS))
    text = _SHARED | part_of(checkpoint.config, "text_config")
    vision = _SHARED | part_of(checkpoint.config, "vision_config")
    expect(checkpoint.source, vision, {"vision_use_head": True})
    tower = take_tower(checkpoint, parts, vision)
    state = take_head(parts, HEAD, ("text_model.head.weight", "text_model.head.bias", "logit_bias"))
    head = {
        "text": text_options(checkpoint, state, text, "siglip_text_base", _tokenizer(state))
        | {"causal": False, "pool": "last"},
        "dim": len(state["text_proj.weight"]),
        "bias": float(state["logit_bias"]),
    }
    made: dict[str, Any] = {
        "source": checkpoint.source,
        "backbone": "siglip_base_patch16",
        "weights": tower,
        "head": Part("siglip", head, state),
        "left_out": idle,
    }
    return tower, vision, made


def _options_of_patches(state: Mapping[str, Tensor], config: Mapping[str, Any], patch: int) -> dict[str, Any]:
    """How the tower for pictures of any shape was built: its first layer is linear, its table a square of patches."""
    width = len(state["embeddings.patch_embedding.weight"])
    return {
        "embed_dim": width,
        "depth": count_of(state, r"encoder\.layers\.(\d+)\."),
        "num_heads": config["num_attention_heads"],
        "patch_size": patch,
        "image_size": math.isqrt(len(state["embeddings.position_embedding.weight"])) * patch,
        "mlp_ratio": ratio(len(state["encoder.layers.0.mlp.fc1.weight"]), width),
    }


def _tokenizer(state: Mapping[str, Tensor]) -> str:
    """The two generations differ in their vocabularies."""
    return "siglip" if len(state["text.token_embed.weight"]) <= _VOCABULARY else "siglip2"

"""Picture towers of open_clip's models: its own ViT and SigLIP's of timm are ours, others stay open_clip's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.clip import ratio
from vitdense.weights.whole.open_clip_names import LIBRARY, listed_with
from vitdense.weights.whole.parts import Parts, count_of, expect, first, square

# What a ViT of open_clip's may have and ours has not, at the value that means it hasn't.
_EXTRAS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
ABSENT: dict[str, Any] = {**dict.fromkeys(_EXTRAS, False), "block_type": "default"}
_PROJECTION = ("visual.proj", "visual.head.")


@dataclass(frozen=True)
class Tower:
    """A picture tower: the backbone that it is, its tensors, the projection behind it, and its size in pixels."""

    backbone: str
    options: Mapping[str, Any]
    weights: Checkpoint
    projection: Mapping[str, Tensor]
    size: tuple[int, int]


def take_tower(checkpoint: Checkpoint, parts: Parts, *, captions: bool = False) -> Tower:
    """The tower and what projects its vector; WeightsError says what of it is not taken. Of a model that writes
    `captions` it is a ViT of open_clip's own, whose pool has been taken before."""
    model = checkpoint.config["model_cfg"]
    vision: Mapping[str, Any] = model["vision_cfg"]
    projection = parts.take(*_PROJECTION)
    state = parts.take("visual.")
    pixels = {name: checkpoint.config.get("preprocess_cfg", {}).get(name) for name in ("mean", "std")}
    pixels = {name: tuple(value) for name, value in pixels.items() if value is not None}
    if "visual.class_embedding" in state and "visual.conv1.weight" in state:
        return _own(checkpoint, state, projection, captions)
    if captions:
        raise WeightsError(f"{checkpoint.source} is a CoCa whose picture tower is no ViT of open_clip's own")
    if _is_siglip(state, vision):
        return _siglip(checkpoint, state, pixels)
    return _foreign(checkpoint, state, projection, pixels)


def _own(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], projection: Mapping[str, Tensor], captions: bool
) -> Tower:
    """open_clip's VisionTransformer, CLIPA's form of it too."""
    vision: Mapping[str, Any] = checkpoint.config["model_cfg"]["vision_cfg"]
    expect(checkpoint.source, vision, {"attentional_pool": captions, **ABSENT})
    below = {key.removeprefix("visual."): tensor for key, tensor in state.items()}
    width, patch = len(below["conv1.weight"]), below["conv1.weight"].shape[-1]
    side = _side(checkpoint, len(below["positional_embedding"]) - 1, patch)
    pooled, mean = bool(vision.get("final_ln_after_pool")), vision.get("pool_type", "tok")
    if mean not in ("tok", "avg"):
        raise WeightsError(f"{checkpoint.source} has pool_type {mean!r} in its picture tower; known here: tok, avg")
    options = {
        "embed_dim": width,
        "depth": count_of(below, r"transformer\.resblocks\.(\d+)\."),
        "num_heads": width // vision.get("head_width", 64),
        "patch_size": patch,
        "image_size": side,
        "mlp_ratio": ratio(len(below["transformer.resblocks.0.mlp.c_fc.weight"]), width),
        "activation": activation(checkpoint.config["model_cfg"], vision),
        "layer_norm_eps": (vision.get("norm_kwargs") or {}).get("eps", 1e-5),
        "layer_scale": vision.get("ls_init_value"),
        "pre_norm": "ln_pre.weight" in below,
        "pool": "mean" if mean == "avg" else "cls",
        "final_norm": "pooled" if mean == "avg" and pooled else "tokens",
    }
    weights = Checkpoint(below, checkpoint.source, config={"preprocess_cfg": checkpoint.config.get("preprocess_cfg")})
    found = {"image_proj.weight": projection["visual.proj"].T} if "visual.proj" in projection else {}
    return Tower("clip_base_patch16", options, weights, found, (side, side))


def _siglip(checkpoint: Checkpoint, state: Mapping[str, Tensor], pixels: Mapping[str, Any]) -> Tower:
    """timm's ViT with an attention pool, whose vector is the embedding."""
    name = checkpoint.config["model_cfg"]["vision_cfg"].get("timm_model_name")
    below = {key.removeprefix("visual.trunk."): tensor for key, tensor in state.items()}
    width, patch = len(below["patch_embed.proj.weight"]), below["patch_embed.proj.weight"].shape[-1]
    side = _side(checkpoint, below["pos_embed"].shape[1], patch)
    options = {
        "embed_dim": width,
        "depth": count_of(below, r"blocks\.(\d+)\."),
        "num_heads": width // 64 if name is None else _heads_of_timm(name),
        "patch_size": patch,
        "image_size": side,
        "mlp_ratio": ratio(len(below["blocks.0.mlp.fc1.weight"]), width),
    }
    # With a config beside them these are timm's: how it builds its networks is known there.
    weights = Checkpoint(below, checkpoint.source, config={"architecture": name or "vit_siglip", **pixels})
    return Tower("siglip_base_patch16", options, weights, {}, (side, side))


def _is_siglip(state: Mapping[str, Tensor], vision: Mapping[str, Any]) -> bool:
    """Whether this is timm's ViT with an attention pool and positions, and nothing that SigLIP's hasn't."""
    others = ("cls_token", "norm_pre.", "reg_token", "head.")
    trunk = [key.removeprefix("visual.trunk.") for key in state if key.startswith("visual.trunk.")]
    signed = {"attn_pool.latent", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= set(trunk)
    strange = any(key.startswith(others) or ".q_norm." in key for key in trunk)
    return signed and not strange and vision.get("timm_proj") in ("none", None)


def _heads_of_timm(name: str) -> int:
    import timm

    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0)
    return int(model.blocks[0].attn.num_heads)


def _foreign(
    checkpoint: Checkpoint, state: dict[str, Tensor], projection: Mapping[str, Tensor], pixels: Mapping[str, Any]
) -> Tower:
    """ResNets, ConvNeXts, EVA and the others, as open_clip builds them by the name of a model of its own."""
    model = checkpoint.config["model_cfg"]
    vision: Mapping[str, Any] = model["vision_cfg"]
    trunk, dim = vision.get("timm_model_name"), model.get("embed_dim")
    kind = trunk or ("a ResNet" if any(key.startswith("visual.layer1.") for key in state) else "of unknown names")
    name = checkpoint.config.get("name") or listed_with(vision, dim)
    if name is None:
        raise WeightsError(
            f"{checkpoint.source} has a picture tower that is {kind}; taken here are ViTs, and towers of models that "
            "open_clip lists: say which it is, as in architecture=RN50"
        )
    found: dict[str, Tensor] = {}
    if trunk and "visual.head.proj.weight" in projection:
        found = {key.replace("visual.head.proj.", "image_proj."): projection[key] for key in projection}
    elif trunk and vision.get("timm_proj") is None:
        heads = [key for key in state if key.startswith("visual.trunk.head.")]
        found = {key.replace("visual.trunk.head.", "image_proj."): state.pop(key) for key in heads}
    if set(found) - {"image_proj.weight", "image_proj.bias"} or (trunk and not found):
        shown = first({*projection, *found}) or "none"
        raise WeightsError(f"{checkpoint.source} projects its picture tower {kind} by {shown}; taken here: one layer")
    size = vision.get("image_size", 224)
    native = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    weights = Checkpoint(state, checkpoint.source, config=checkpoint.config)
    return Tower(f"{LIBRARY}/{name}", pixels, weights, found, native)


def activation(model: Mapping[str, Any], tower: Mapping[str, Any]) -> str:
    """Our name of the activation of a tower of open_clip's own."""
    if model.get("quick_gelu"):
        return "quick_gelu"
    approximate = (tower.get("act_kwargs") or {}).get("approximate", "none")
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def _side(checkpoint: Checkpoint, cells: int, patch: int) -> int:
    """Pixels a side, from a square table of positions."""
    given = checkpoint.config["model_cfg"]["vision_cfg"].get("image_size")
    side = math.isqrt(cells)
    if side * side != cells:
        raise WeightsError(f"{checkpoint.source} has {cells} positions of patches, which make no square")
    # Where the picture doesn't divide, open_clip leaves its rest away, and its size is that of the description.
    stated = side * patch if given is None else square(checkpoint.source, given)
    return stated if stated // patch == side else side * patch

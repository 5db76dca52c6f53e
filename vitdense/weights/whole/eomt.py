"""EoMT on DINOv2 with registers, as transformers saves it and as its authors do, and transformers' on DINOv3."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.deformable_detr import renamed
from vitdense.weights.whole.inference import of_segments
from vitdense.weights.whole.mask2former import COCO, COCO_THINGS, options_of_masks
from vitdense.weights.whole.parts import Part, Parts, Whole, count_of, expect, first, named_classes, square

_HEAD = (
    (r"^eomt(_dinov3)?\.", ""),
    (r"^upscale_block\.block\.(\d+)\.layernorm2d\.", r"upscale.\1.norm."),
    (r"^upscale_block\.block\.", "upscale."),
)
# To the names that transformers' own DINOv2 and DINOv3 have.
_DINOV2 = (
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.out_proj\.", ".attention.o_proj."),
)
_DINOV3 = ((r"^layers\.", "layer."), (r"^layernorm\.", "norm."))
# From the authors' names, under which the ViT has those of timm, to transformers' heads and ours.
_AUTHORS = (
    (r"^network\.", ""),
    (r"^encoder\.backbone\.", "backbone."),
    (r"^q\.", "query."),
    (r"^class_head\.", "class_predictor."),
    *((rf"^mask_head\.{2 * i}\.", f"mask_head.fc{i + 1}.") for i in range(3)),
)
_BACKBONE = ("embeddings.", "layers.", "layernorm.", "rope_embeddings.")
_CHANCES, _CLASSES = "attn_mask_probs", "class_predictor.weight"
_PATCHES, _POSITIONS, _HIDDEN = "patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc2.weight"


def is_of(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of the authors' EoMT."""
    return any(f"{root}q.weight" in state and f"{root}class_head.weight" in state for root in ("network.", ""))


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of an EoMT on DINOv2."""
    config, parts = checkpoint.config, Parts(checkpoint.source, renamed(checkpoint.state, _HEAD))
    body = renamed(parts.take(*_BACKBONE), _DINOV2)
    width, gated = config.get("hidden_size", 1024), bool(config.get("use_swiglu_ffn", False))
    hidden = int(width * config.get("mlp_ratio", 4))
    if gated:  # as their DINOv2 rounds it
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    table = body.pop("embeddings.position_embeddings.weight", None)
    if table is None:
        raise WeightsError(f"{checkpoint.source} lacks the positions of its EoMT: it has {first(body)}")
    # The class token has no place there: ours is at 0.
    body["embeddings.position_embeddings"] = torch.cat([torch.zeros_like(table[:1]), table])[None]
    extra = {"mlp_ratio": hidden / width, "mlp": "gated" if gated else "plain"}
    if gated:
        extra["activation"] = "silu"
    return _whole(checkpoint, parts, body, "dinov2_base_patch14_reg", extra)


def read_dinov3(checkpoint: Checkpoint) -> Whole:
    """The parts of an EoMT on DINOv3."""
    config, parts = checkpoint.config, Parts(checkpoint.source, renamed(checkpoint.state, _HEAD))
    wanted = {"query_bias": True, "key_bias": False, "value_bias": True, "proj_bias": True, "mlp_bias": True}
    expect(checkpoint.source, config, wanted)
    theta = (config.get("rope_parameters") or {}).get("rope_theta", 100.0)
    if theta != 100.0:
        raise WeightsError(f"{checkpoint.source} has rope_theta {theta}; known here: 100.0")
    gated = bool(config.get("use_gated_mlp", False))
    width = config.get("hidden_size", 1024)
    extra = {"mlp_ratio": config.get("intermediate_size", 4096) / width, "mlp": "gated" if gated else "plain"}
    body = renamed(parts.take(*_BACKBONE), _DINOV3)
    return _whole(checkpoint, parts, body, "dinov3_base_patch16", extra)


def read_original(checkpoint: Checkpoint) -> Whole:
    """The parts of a file of the authors' on DINOv2, which says nothing of itself but by its tensors: heads of 64
    channels and square pictures are taken for granted, as in all that they published, and 133 classes for COCO's. What
    they published on DINOv3 are differences from weights that aren't in the file, which WeightsError says."""
    parts = Parts(checkpoint.source, renamed(checkpoint.state, _AUTHORS))
    body = parts.take("backbone.", strip="backbone.")
    if _PATCHES not in body and any(key.startswith("patch_embed.patch_embeddings.") for key in body):
        raise WeightsError(
            f"{checkpoint.source} is an EoMT on DINOv3, of which its authors publish differences from DINOv3's own "
            "weights: take what transformers made of both"
        )
    missing = sorted({_PATCHES, _POSITIONS, _HIDDEN} - body.keys())
    if missing:
        raise WeightsError(f"{checkpoint.source} lacks {first(missing)} of its EoMT's ViT: it has {first(body)}")
    facts = parts.take("encoder.pixel_")
    registers, patch = body.get("reg_token"), body[_PATCHES].shape[-1]
    cells = body[_POSITIONS].shape[1]
    if isqrt(cells) ** 2 != cells:
        raise WeightsError(f"{checkpoint.source} has positions for {cells} patches; known here: squares")
    size, width, hidden = isqrt(cells) * patch, body[_PATCHES].shape[0], body[_HIDDEN].shape[1]
    gated = len(body["blocks.0.mlp.fc1.weight"]) == 2 * hidden
    network = {
        "embed_dim": width,
        "depth": count_of(body, r"blocks\.(\d+)\."),
        "num_heads": width // 64,
        "patch_size": patch,
        "image_size": size,
        "num_registers": 0 if registers is None else registers.shape[1],
        "mlp_ratio": hidden / width,
        "mlp": "gated" if gated else "plain",
        "activation": "silu" if gated else "gelu",
    }
    statistics = {kind: facts[f"encoder.pixel_{kind}"].flatten().tolist() for kind in ("mean", "std")}
    head, options = _head(checkpoint, parts)
    if options["num_classes"] == COCO:
        options["stuff"] = tuple(range(COCO_THINGS, COCO))
    return Whole(
        checkpoint.source,
        "dinov2_base_patch14_reg",
        network,
        Checkpoint(body, checkpoint.source, {"pretrained_cfg": statistics}),
        Part("eomt", options, head),
        classes=named_classes({}, options["num_classes"]),
        # The longer side is brought to the size of training.
        inference={"short_side": size, "long_max": size},
    )


def _whole(
    checkpoint: Checkpoint, parts: Parts, body: dict[str, Tensor], backbone: str, extra: Mapping[str, Any]
) -> Whole:
    config = checkpoint.config
    registers = body.get("embeddings.register_tokens")
    if registers is not None and not registers.shape[1]:
        del body["embeddings.register_tokens"]
    head, options = _head(checkpoint, parts)
    network = {
        "embed_dim": config.get("hidden_size", 1024),
        "depth": config.get("num_hidden_layers", 24),
        "num_heads": config.get("num_attention_heads", 16),
        "patch_size": square(checkpoint.source, config.get("patch_size", 16)),
        "image_size": square(checkpoint.source, config.get("image_size", 640)),
        "in_channels": config.get("num_channels", 3),
        "num_registers": 0 if registers is None else registers.shape[1],
        "layer_scale": config.get("layerscale_value", 1.0),
        "drop_path": float(config.get("drop_path_rate", 0.0)),
        **extra,
    }
    expect(checkpoint.source, config, {"hidden_dropout_prob": 0.0, "attention_dropout": 0.0, "hidden_act": "gelu"})
    weights = Checkpoint(body, checkpoint.source, config, checkpoint.preprocessor)
    return Whole(
        checkpoint.source,
        backbone,
        network,
        weights,
        Part("eomt", options, head),
        classes=named_classes(config, options["num_classes"]),
        inference=of_segments(checkpoint),
    )


def _head(checkpoint: Checkpoint, parts: Parts) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The head's tensors and options; of the file nothing is left then."""
    chances = parts.state.pop(_CHANCES, None)
    masking = _masking(checkpoint, chances)
    parts.take("criterion.")
    head = parts.take("query.", "upscale.", "mask_head.", "class_predictor.")
    parts.finish()
    if _CLASSES not in head:
        raise WeightsError(f"{checkpoint.source} lacks {_CLASSES} of its EoMT: it has {first(head)}")
    return head, {
        **options_of_masks(checkpoint.config, len(head[_CLASSES]) - 1),
        "num_queries": len(head["query.weight"]),
        "blocks": checkpoint.config.get("num_blocks", 4 if chances is None else len(chances)),
        "upscale_blocks": count_of(head, r"upscale\.(\d+)\."),
        "masking": masking,
    }


def _masking(checkpoint: Checkpoint, chances: Tensor | None) -> str:
    """Whether masks limit queries in evaluation: in all blocks, or, as after training, in none."""
    if chances is None or not chances.any():
        return "annealed"
    if bool((chances == 1).all()):
        return "always"
    raise WeightsError(
        f"{checkpoint.source} has {_CHANCES} {chances.tolist()}, of the middle of training; known here: all 0, all 1"
    )

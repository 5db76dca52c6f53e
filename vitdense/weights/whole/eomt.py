"""transformers' EomtForUniversalSegmentation on DINOv2 with registers, and EomtDinov3ForUniversalSegmentation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.deformable_detr import renamed
from vitdense.weights.whole.inference import of_segments
from vitdense.weights.whole.mask2former import options_of_masks
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
_BACKBONE = ("embeddings.", "layers.", "layernorm.", "rope_embeddings.")
_CHANCES, _CLASSES = "attn_mask_probs", "class_predictor.weight"


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


def _whole(
    checkpoint: Checkpoint, parts: Parts, body: dict[str, Tensor], backbone: str, extra: Mapping[str, Any]
) -> Whole:
    config = checkpoint.config
    registers = body.get("embeddings.register_tokens")
    if registers is not None and not registers.shape[1]:
        del body["embeddings.register_tokens"]
    masking = _masking(checkpoint, parts.state.pop(_CHANCES, None))
    parts.take("criterion.")
    head = parts.take("query.", "upscale.", "mask_head.", "class_predictor.")
    parts.finish()
    if _CLASSES not in head:
        raise WeightsError(f"{checkpoint.source} lacks {_CLASSES} of its EoMT: it has {first(head)}")
    classes = len(head[_CLASSES]) - 1
    options = {
        **options_of_masks(config, classes),
        "num_queries": len(head["query.weight"]),
        "blocks": config.get("num_blocks", 4),
        "upscale_blocks": count_of(head, r"upscale\.(\d+)\."),
        "masking": masking,
    }
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
        classes=named_classes(config, classes),
        inference=of_segments(checkpoint),
    )


def _masking(checkpoint: Checkpoint, chances: Tensor | None) -> str:
    """Whether masks limit queries in evaluation: in all blocks, or, as after training, in none."""
    if chances is None or not chances.any():
        return "annealed"
    if bool((chances == 1).all()):
        return "always"
    raise WeightsError(
        f"{checkpoint.source} has {_CHANCES} {chances.tolist()}, of the middle of training; known here: all 0, all 1"
    )

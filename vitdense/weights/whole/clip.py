"""transformers' CLIPModel (https://arxiv.org/abs/2103.00020): both towers, their projections and the temperature."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.facts import ACTIVATIONS
from vitdense.weights.rows import Change, Row, translate
from vitdense.weights.whole.parts import Part, Parts, Whole, count_of, expect, first, square
from vitdense.weights.whole.pictures import of_clip

# ---------------------------------------------------------------- tables

number = Change(lambda value: value.reshape(()), lambda value: value)
_LAYER, _BLOCK, _QKV = "text_model.encoder.layers.{i}", "text.blocks.{i}", "text.blocks.{i}.attn.qkv.*"
TEXT = (
    Row("text_model.embeddings.token_embedding.weight", "text.token_embed.weight"),
    Row("text_model.embeddings.position_embedding.weight", "text.pos_embed"),
    Row(_LAYER + ".layer_norm{j}.*", _BLOCK + ".norm{j}.*"),
    Row(_LAYER + ".self_attn.q_proj.*", _QKV, part=(0, 3)),
    Row(_LAYER + ".self_attn.k_proj.*", _QKV, part=(1, 3)),
    Row(_LAYER + ".self_attn.v_proj.*", _QKV, part=(2, 3)),
    Row(_LAYER + ".self_attn.out_proj.*", _BLOCK + ".attn.proj.*"),
    Row(_LAYER + ".mlp.fc{j}.*", _BLOCK + ".mlp.fc{j}.*"),
    Row("text_model.final_layer_norm.*", "text.norm.*"),
)
HEAD = (
    *TEXT,
    Row("text_projection.weight", "text_proj.weight"),
    Row("visual_projection.weight", "image_proj.weight"),
    Row("logit_scale", "logit_scale", change=number),
)
# Counters that old files hold.
POSITION_IDS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")

CLIP_VOCABULARY = 49408
_TEXT_DEFAULTS = {"num_attention_heads": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407}
_VISION_DEFAULTS = {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}

# ---------------------------------------------------------------- reading


def read(checkpoint: Checkpoint) -> Whole:
    """The parts of a CLIPModel; WeightsError where only one of the towers is there."""
    config = checkpoint.config
    parts = Parts(checkpoint.source, dict(checkpoint.state))
    idle = tuple(parts.take(*POSITION_IDS))
    text = _TEXT_DEFAULTS | part_of(config, "text_config")
    vision = _VISION_DEFAULTS | part_of(config, "vision_config")
    tower = take_tower(checkpoint, parts, vision)
    state = take_head(parts, HEAD, ("text_projection.weight", "visual_projection.weight"))
    end = text["eos_token_id"]
    head = {
        "text": text_options(checkpoint, state, text, "clip_text_base", "clip")
        # Old configs say 2, and mean the highest number.
        | {"end_token": None if end == 2 else end, "causal": True, "pool": "end"},
        "dim": len(state["text_proj.weight"]),
    }
    options = vision_options(tower, vision)
    return Whole(
        checkpoint.source,
        backbone="clip_base_patch16",
        options=options,
        weights=tower,
        head=Part("clip", head, state),
        left_out=idle,
        preprocess=of_clip(checkpoint, options["image_size"]),
    )


def part_of(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A tower's config; what old files say a second time under another name counts."""
    both = {**(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}
    return {key: value for key, value in both.items() if value is not None}


def take_tower(checkpoint: Checkpoint, parts: Parts, vision: Mapping[str, Any]) -> Checkpoint:
    """The picture tower's tensors, with its own config beside them."""
    state = parts.take("vision_model.", strip="vision_model.")
    for needed in ("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"):
        if needed not in state:
            raise WeightsError(f"{checkpoint.source} lacks vision_model.{needed}: it has {first(checkpoint.state)}")
    return Checkpoint(state, checkpoint.source, config=vision, preprocessor=checkpoint.preprocessor)


def take_head(parts: Parts, table: tuple[Row, ...], needed: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """All tensors that are left, under our names; WeightsError where one has none, or where one of theirs is absent."""
    wanted = (
        *needed,
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
    )
    absent = [key for key in (*wanted, "text_model.encoder.layers.0.mlp.fc1.weight") if key not in parts.state]
    if absent:
        raise WeightsError(f"{parts.source} lacks {first(absent)}: it has {first(parts.state)}")
    done = translate(parts.take(""), table, "in")
    parts.finish(done.strange)
    return done.state


# ---------------------------------------------------------------- options


def vision_options(tower: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """How a picture tower of transformers was built, beside what its dialect reads from the same config."""
    kernel, positions = (tower.state[f"embeddings.{name}_embedding.weight"] for name in ("patch", "position"))
    width = len(kernel)
    expect(tower.source, config, {"attention_dropout": 0.0})
    side = square(tower.source, config.get("image_size", 224))
    patch = square(tower.source, config.get("patch_size", kernel.shape[-1]))
    if kernel.shape[-1] != patch or len(positions) - (side // patch) ** 2 not in (0, 1):
        raise WeightsError(
            f"{tower.source} has {len(positions)} positions and patches of {tuple(kernel.shape)}, which don't fit "
            f"image_size {side} and patch_size {patch} of its config"
        )
    return {
        "embed_dim": width,
        "depth": count_of(tower.state, r"encoder\.layers\.(\d+)\."),
        "num_heads": config["num_attention_heads"],
        "patch_size": patch,
        "image_size": side,
        "in_channels": kernel.shape[1],
        "mlp_ratio": ratio(len(tower.state["encoder.layers.0.mlp.fc1.weight"]), width),
    }


def text_options(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], config: Mapping[str, Any], preset: str, tokenizer: str
) -> dict[str, Any]:
    """How a text tower of transformers was built; `state` is under our names."""
    expect(checkpoint.source, config, {"attention_dropout": 0.0})
    vocab, width = state["text.token_embed.weight"].shape
    return {
        "name": preset,
        "width": width,
        "depth": count_of(state, r"text\.blocks\.(\d+)\."),
        "num_heads": config["num_attention_heads"],
        "context": len(state["text.pos_embed"]),
        "vocab": vocab,
        "mlp_ratio": ratio(len(state["text.blocks.0.mlp.fc1.weight"]), width),
        "activation": activation_of(checkpoint.source, config["hidden_act"]),
        "layer_norm_eps": config["layer_norm_eps"],
        "tokenizer": _tokenizer(checkpoint.source, vocab, tokenizer),
    }


def _tokenizer(source: str, vocab: int, usual: str) -> str:
    """The family's own, of which CLIP's needs no files; else the one that was published with the weights."""
    beside = [name for name in ("tokenizer.json", "spiece.model", "vocab.json") if (Path(source) / name).is_file()]
    if (usual == "clip" and vocab == CLIP_VOCABULARY) or not (beside or source.startswith("hf/")):
        return usual
    return source if source.startswith("hf/") else f"hf/{source}"


def activation_of(source: str, name: str) -> str:
    """Our name of an activation of transformers'."""
    if name not in ACTIVATIONS:
        raise WeightsError(f"{source} has hidden_act {name!r}; known here: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def ratio(hidden: int, width: int) -> float:
    """The factor by which a width becomes exactly `hidden` when its product is cut to a whole number."""
    found = hidden / width
    return found if int(width * found) == hidden else (hidden + 0.5) / width

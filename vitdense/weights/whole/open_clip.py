"""open_clip's models (https://github.com/mlfoundations/open_clip) under its names, which are OpenAI's: CLIP, CLIPA,
SigLIP and CoCa whole, the text towers of all but CoCa on whatever picture tower open_clip has."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.rows import Change, Row, translate
from vitdense.weights.whole import open_clip_coca as coca
from vitdense.weights.whole.clip import CLIP_VOCABULARY, number, ratio
from vitdense.weights.whole.open_clip_names import named, recognised
from vitdense.weights.whole.open_clip_towers import ABSENT, Tower, activation, take_tower
from vitdense.weights.whole.parts import Part, Parts, Whole, count_of, expect, first
from vitdense.weights.whole.pictures import of_open_clip

_transposed = Change(lambda matrix: matrix.T, lambda matrix: matrix.T)
_THEIRS, _OURS = "transformer.resblocks.{i}", "text.blocks.{i}"
TEXT = (
    Row("token_embedding.weight", "text.token_embed.weight"),
    Row("positional_embedding", "text.pos_embed"),
    Row(_THEIRS + ".ln_{j}.*", _OURS + ".norm{j}.*"),
    Row(_THEIRS + ".attn.in_proj_*", _OURS + ".attn.qkv.*"),
    Row(_THEIRS + ".attn.out_proj.*", _OURS + ".attn.proj.*"),
    Row(_THEIRS + ".mlp.c_fc.*", _OURS + ".mlp.fc1.*"),
    Row(_THEIRS + ".mlp.c_proj.*", _OURS + ".mlp.fc2.*"),
    Row("ln_final.*", "text.norm.*"),
)
_SCALARS = (Row("logit_scale", "logit_scale", change=number), Row("logit_bias", "logit_bias", change=number))
# The projection of texts is a matrix, or a layer where it has a bias.
MATRIX = (*TEXT, Row("text_projection", "text_proj.weight", change=_transposed), *_SCALARS)
LAYER = (*TEXT, Row("text_projection.*", "text_proj.*"), *_SCALARS)

# Numbers that OpenAI's files have beside their tensors, and masks that old ones of open_clip hold.
_MARKS = ("input_resolution", "context_length", "vocab_size")
_MASKS = ("attn_mask", "text.attn_mask")
_POOLS = {"argmax": "end", "eos": "end", "last": "last"}


def is_of(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of open_clip's, or of OpenAI's, pictures and texts together."""
    texts = ("token_embedding.weight", "text.", "transformer.resblocks.")
    return any(key.startswith("visual.") for key in state) and any(key.startswith(texts) for key in state)


def read(checkpoint: Checkpoint, architecture: str | None = None) -> Whole:
    """The parts of a model of open_clip's, described by open_clip_config.json, by the user, or by its shapes."""
    checkpoint = _described(checkpoint, architecture)
    _refuse_others(checkpoint)
    parts = Parts(checkpoint.source, dict(checkpoint.state))
    idle = tuple(parts.take(*_MARKS, *_MASKS))
    captions = coca.is_of(parts.state)
    captioner = coca.take_captioner(parts, checkpoint.config["model_cfg"]) if captions else {}
    tower = take_tower(checkpoint, parts, captions=captions)
    layer = any(key.endswith("text_projection.weight") for key in parts.state)
    table = (LAYER if layer else MATRIX) + (coca.CLASS_TOKEN if captions else ())
    done = translate(parts.take("text.", strip="text.") | parts.take(""), table, "in")
    parts.finish(done.strange)
    state = done.state | dict(tower.projection) | captioner
    return Whole(
        checkpoint.source,
        backbone=tower.backbone,
        options=tower.options,
        weights=tower.weights,
        head=_head(checkpoint, tower, state),
        left_out=idle,
        preprocess=of_open_clip(checkpoint.config.get("preprocess_cfg") or {}, tower.size),
    )


def _described(checkpoint: Checkpoint, architecture: str | None) -> Checkpoint:
    if architecture is not None:
        return named(checkpoint, architecture)
    if "model_cfg" in checkpoint.config:
        return checkpoint
    # OpenAI's: 64 channels a head, QuickGELU.
    if any(mark in checkpoint.state for mark in _MARKS):
        described = {"quick_gelu": True, "vision_cfg": {}, "text_cfg": {"heads": None}}
        return Checkpoint(checkpoint.state, checkpoint.source, config={"model_cfg": described})
    if "visual.conv1.weight" in checkpoint.state and "visual.class_embedding" in checkpoint.state:
        return recognised(checkpoint)
    raise WeightsError(
        f"{checkpoint.source} says nothing of its picture tower, which is no ViT of open_clip's own "
        f"({first(key for key in checkpoint.state if key.startswith('visual.'))}): put open_clip_config.json beside "
        "open_clip_model.safetensors, or say which model it is, as in architecture=ViT-B-16-SigLIP"
    )


def _refuse_others(checkpoint: Checkpoint) -> None:
    """WeightsError for what has parts that no head here has."""
    model, state = checkpoint.config["model_cfg"], checkpoint.state
    if model.get("multimodal_cfg") and not coca.is_of(state):
        raise WeightsError(f"{checkpoint.source} is described as a CoCa, and has no text_decoder: {first(state)}")
    text: Mapping[str, Any] = model.get("text_cfg", {})
    if text.get("hf_model_name") or not any(key.endswith("ln_final.weight") for key in state):
        kind = text.get("hf_model_name") or "of another library"
        raise WeightsError(f"{checkpoint.source} has a text tower that is {kind}; taken here: open_clip's own")


def _head(checkpoint: Checkpoint, tower: Tower, state: Mapping[str, Tensor]) -> Part:
    """CoCa's where captions are written, SigLIP's where there is a bias, else CLIP's."""
    absent = [key for key in ("text.token_embed.weight", "text.pos_embed", "logit_scale") if key not in state]
    if absent:
        raise WeightsError(f"{checkpoint.source} lacks what head clip calls {first(absent)}")
    options: dict[str, Any] = {"text": _text(checkpoint, state), "dim": _dim(tower, state)}
    for name in ("image", "text"):
        biased = f"{name}_proj.bias" in state
        kind = "affine" if biased else "linear"
        options[f"{name}_projection"] = kind if f"{name}_proj.weight" in state else "none"
    bias = state.get("logit_bias")
    options["bias"] = None if bias is None else float(bias)
    if "pool.query" in state:
        return Part("coca", options | coca.options_of(checkpoint.config["model_cfg"], state), state)
    return Part("clip" if bias is None else "siglip", options, state)


def _dim(tower: Tower, state: Mapping[str, Tensor]) -> int:
    """The width of the common space."""
    for name in ("image_proj.weight", "text_proj.weight", "text.norm.weight"):
        if name in state:
            return len(state[name])
    raise AssertionError("a text tower has a norm")


def _text(checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """How the text tower was built; its tensors say the rest."""
    model = checkpoint.config["model_cfg"]
    text: Mapping[str, Any] = model.get("text_cfg", {})
    captions = "text.cls_token" in state
    expect(checkpoint.source, text, {"ls_init_value": None, "embed_cls": captions, **ABSENT})
    pool = text.get("pool_type", "argmax")
    if pool not in _POOLS:
        raise WeightsError(
            f"{checkpoint.source} has pool_type {pool!r} in its text tower; known here: {', '.join(_POOLS)}"
        )
    vocab, width = state["text.token_embed.weight"].shape
    return {
        "name": "coca_text_base" if captions else "clip_text_base",
        "width": width,
        "depth": count_of(state, r"text\.blocks\.(\d+)\."),
        "num_heads": text.get("heads", 8) or width // 64,
        "context": len(state["text.pos_embed"]) - captions,
        "vocab": vocab,
        "mlp_ratio": ratio(len(state["text.blocks.0.mlp.fc1.weight"]), width),
        "activation": activation(model, text),
        "layer_norm_eps": (text.get("norm_kwargs") or {}).get("eps", 1e-5),
        "causal": not text.get("no_causal_mask", False),
        "pool": "class" if captions else _POOLS[pool],
        "end_token": text.get("eos_id", 2) if pool == "eos" else None,
        "tokenizer": _tokenizer(text, vocab),
    }


def _tokenizer(text: Mapping[str, Any], vocab: int) -> str:
    """CLIP's own, or transformers'; "siglip/..." cleans texts as SigLIP's authors do."""
    given = text.get("hf_tokenizer_name")
    if given is None:
        return "clip" if vocab >= CLIP_VOCABULARY else "siglip"
    cleaned = (text.get("tokenizer_kwargs") or {}).get("clean") == "canonicalize"
    return f"siglip/{given}" if cleaned else f"hf/{given}"

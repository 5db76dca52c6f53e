"""What open_clip's CoCa (https://arxiv.org/abs/2205.01917) has beside a CLIP: the pool of its picture tower, the class
token of its texts, and the decoder of captions."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.rows import Change, Row, translate
from vitdense.weights.whole.clip import CLIP_VOCABULARY
from vitdense.weights.whole.parts import Parts, count_of, expect, first

_transposed = Change(lambda matrix: matrix.T, lambda matrix: matrix.T)
_POOL, _CROSS, _OURS = "visual.attn_pool", "text_decoder.cross_attn.{i}", "decoder.cross_blocks.{i}"


def _block(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        Row(theirs + ".ln_{j}.*", ours + ".norm{j}.*"),
        Row(theirs + ".attn.out_proj.*", ours + ".attn.proj.*"),
        Row(theirs + ".mlp.c_fc.*", ours + ".mlp.fc1.*"),
        Row(theirs + ".mlp.c_proj.*", ours + ".mlp.fc2.*"),
    )


CLASS_TOKEN = (Row("cls_emb", "text.cls_token"),)
POOL = (
    Row(_POOL + ".query", "pool.query"),
    Row(_POOL + ".ln_q.*", "pool.norm_q.*"),
    # Three weights where queries and pictures differ in width, else one.
    Row(_POOL + ".attn.q_proj_weight", "pool.attn.q.weight"),
    Row(_POOL + ".attn.k_proj_weight", "pool.attn.kv.weight", part=(0, 2)),
    Row(_POOL + ".attn.v_proj_weight", "pool.attn.kv.weight", part=(1, 2)),
    Row(_POOL + ".attn.in_proj_*", "pool.attn.q.*", cut=(0, 1, 3)),
    Row(_POOL + ".attn.in_proj_*", "pool.attn.kv.*", cut=(1, 3, 3)),
    Row(_POOL + ".attn.out_proj.*", "pool.attn.proj.*"),
    Row("visual.ln_post.*", "norm.*"),
)
DECODER = (
    *_block("text_decoder.resblocks.{i}", "decoder.blocks.{i}"),
    Row("text_decoder.resblocks.{i}.attn.in_proj_*", "decoder.blocks.{i}.attn.qkv.*"),
    Row(_CROSS + ".ln_1_kv.*", _OURS + ".norm_kv.*"),
    *_block(_CROSS, _OURS),
    Row(_CROSS + ".attn.in_proj_*", _OURS + ".attn.q.*", cut=(0, 1, 3)),
    Row(_CROSS + ".attn.in_proj_*", _OURS + ".attn.kv.*", cut=(1, 3, 3)),
    Row("text_decoder.ln_final.*", "decoder.norm.*"),
    Row("text_decoder.text_projection", "decoder.to_logits.weight", change=_transposed),
)
_NEEDED = (f"{_POOL}.query", f"{_POOL}.ln_k.weight", "visual.ln_post.weight", "text_decoder.text_projection")
_MASK = "text_decoder.attn_mask"


def is_of(state: Mapping[str, Tensor]) -> bool:
    """Whether captions are written."""
    return any(key.startswith("text_decoder.") for key in state)


def take_captioner(parts: Parts, model: Mapping[str, Any]) -> dict[str, Tensor]:
    """Pool and decoder under the names of head coca; the pool's norm of the picture's tokens becomes the tower's."""
    absent = [key for key in _NEEDED if key not in parts.state]
    if absent:
        raise WeightsError(f"{parts.source} lacks {first(absent)} of its CoCa: it has {first(parts.state)}")
    _refuse_others(parts.source, model)
    parts.take(_MASK)
    norm = parts.take(f"{_POOL}.ln_k.", strip=f"{_POOL}.ln_k.", put="visual.ln_post.")
    done = translate(parts.take(f"{_POOL}.", "visual.ln_post.", "text_decoder."), POOL + DECODER, "in")
    if done.strange:
        raise WeightsError(f"{parts.source} has tensors that belong to no part of its CoCa: {first(done.strange)}")
    parts.state |= norm
    return done.state


def _refuse_others(source: str, model: Mapping[str, Any]) -> None:
    """WeightsError for what head coca has not."""
    vision, text, decoder = (model.get(f"{name}_cfg") or {} for name in ("vision", "text", "multimodal"))
    expect(source, vision, {"attentional_pool": True, "pool_type": "tok", "final_ln_after_pool": False})
    expect(source, text, {"embed_cls": True, "no_causal_mask": False, "pad_id": 0, "mlp_ratio": 4.0})
    expect(source, decoder, {"ls_init_value": None, "mlp_ratio": 4})
    for tower in (vision, text):
        for name in ("norm_kwargs", "act_kwargs"):
            if tower.get(name):
                raise WeightsError(f"{source} has {name} {tower[name]!r}; known here in a CoCa: none")


def options_of(model: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """How the captioner was built; `state` is under the names of head coca."""
    vision, decoder = model.get("vision_cfg") or {}, model.get("multimodal_cfg") or {}
    vocab = len(state["text.token_embed.weight"])
    options: dict[str, Any] = {
        "num_queries": len(state["pool.query"]),
        "pool_heads": vision.get("attn_pooler_heads", 8),
        "decoder_depth": count_of(state, r"decoder\.blocks\.(\d+)\."),
        "decoder_heads": decoder.get("heads", 8),
    }
    # CLIP's tokenizer has its marks last.
    return options if vocab == CLIP_VOCABULARY else options | {"start_token": vocab - 2, "stop_token": vocab - 1}

"""Networks of clips: TimeSformer, VideoMAE and V-JEPA 2, as their authors and transformers name them.

transformers' ViViT has the names of its ViT, whose dialect reads it.
"""

from typing import Any

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import Dialect, State
from vitdense.weights.facts import HALF, transformers_facts
from vitdense.weights.rows import Change, Row

# ---------------------------------------------------------------- tables

# TimeSformer's patches are those of a picture: tubelets of one frame.
of_one_frame = Change(lambda kernel: kernel[:, :, None] if kernel.ndim == 4 else kernel, lambda kernel: kernel[:, :, 0])

AUTHORS = (
    Row("patch_embed.proj.weight", "patch_embed.proj.weight", change=of_one_frame),
    Row("*", "*"),
)

_LAYER, _BLOCK = "encoder.layer.{i}", "blocks.{i}"
TIMESFORMER = (
    Row("embeddings.cls_token", "cls_token"),
    Row("embeddings.position_embeddings", "pos_embed"),
    Row("embeddings.time_embeddings", "time_embed"),
    Row("embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight", change=of_one_frame),
    Row("embeddings.patch_embeddings.projection.bias", "patch_embed.proj.bias"),
    Row(f"{_LAYER}.temporal_layernorm.*", f"{_BLOCK}.temporal_norm1.*"),
    Row(f"{_LAYER}.temporal_attention.attention.qkv.*", f"{_BLOCK}.temporal_attn.qkv.*"),
    Row(f"{_LAYER}.temporal_attention.output.dense.*", f"{_BLOCK}.temporal_attn.proj.*"),
    Row(f"{_LAYER}.temporal_dense.*", f"{_BLOCK}.temporal_fc.*"),
    Row(f"{_LAYER}.layernorm_before.*", f"{_BLOCK}.norm1.*"),
    Row(f"{_LAYER}.attention.attention.qkv.*", f"{_BLOCK}.attn.qkv.*"),
    Row(f"{_LAYER}.attention.output.dense.*", f"{_BLOCK}.attn.proj.*"),
    Row(f"{_LAYER}.layernorm_after.*", f"{_BLOCK}.norm2.*"),
    Row(f"{_LAYER}.intermediate.dense.*", f"{_BLOCK}.mlp.fc1.*"),
    Row(f"{_LAYER}.output.dense.*", f"{_BLOCK}.mlp.fc2.*"),
    Row("layernorm.*", "norm.*"),
)

_SELF = f"{_LAYER}.attention.attention"
VIDEOMAE = (
    Row("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    Row(f"{_LAYER}.layernorm_before.*", f"{_BLOCK}.norm1.*"),
    Row(f"{_SELF}.query.weight", f"{_BLOCK}.attn.qkv.weight", part=(0, 3)),
    Row(f"{_SELF}.key.weight", f"{_BLOCK}.attn.qkv.weight", part=(1, 3)),
    Row(f"{_SELF}.value.weight", f"{_BLOCK}.attn.qkv.weight", part=(2, 3)),
    # Files have the former, models in memory the latter.
    Row((f"{_SELF}.q_bias", f"{_SELF}.query.bias"), f"{_BLOCK}.attn.q_bias"),
    Row((f"{_SELF}.v_bias", f"{_SELF}.value.bias"), f"{_BLOCK}.attn.v_bias"),
    Row(f"{_LAYER}.attention.output.dense.*", f"{_BLOCK}.attn.proj.*"),
    Row(f"{_LAYER}.layernorm_after.*", f"{_BLOCK}.norm2.*"),
    Row(f"{_LAYER}.intermediate.dense.*", f"{_BLOCK}.mlp.fc1.*"),
    Row(f"{_LAYER}.output.dense.*", f"{_BLOCK}.mlp.fc2.*"),
    Row("layernorm.*", "norm.*"),
    Row("fc_norm.*", "fc_norm.*"),
)

VJEPA2 = (
    Row("encoder.embeddings.patch_embeddings.proj.*", "patch_embed.proj.*"),
    Row(f"{_LAYER}.norm{{j}}.*", f"{_BLOCK}.norm{{j}}.*"),
    Row(f"{_LAYER}.attention.query.*", f"{_BLOCK}.attn.qkv.*", part=(0, 3)),
    Row(f"{_LAYER}.attention.key.*", f"{_BLOCK}.attn.qkv.*", part=(1, 3)),
    Row(f"{_LAYER}.attention.value.*", f"{_BLOCK}.attn.qkv.*", part=(2, 3)),
    Row(f"{_LAYER}.attention.proj.*", f"{_BLOCK}.attn.proj.*"),
    Row(f"{_LAYER}.mlp.fc{{j}}.*", f"{_BLOCK}.mlp.fc{{j}}.*"),
    Row("encoder.layernorm.*", "norm.*"),
)

# ---------------------------------------------------------------- options

KINETICS = {"mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225)}


def _sizes(checkpoint: Checkpoint, names: dict[str, str]) -> dict[str, Any]:
    """Whole numbers of transformers' config, under our names; of pairs, the one that both are."""
    found: dict[str, Any] = {}
    for ours, theirs in names.items():
        told = checkpoint.config.get(theirs)
        sides = {told} if isinstance(told, int) else set(told or ())
        if len(sides) > 1:
            raise WeightsError(f"{checkpoint.source} has {theirs} {told!r}; known here: squares")
        if sides:
            found[ours] = sides.pop()
    return found


def _timesformer_authors(_: Checkpoint, state: State) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-6, **KINETICS}


def _timesformer(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    kind = checkpoint.config.get("attention_type", "divided_space_time")
    known = {"divided_space_time": "divided", "joint_space_time": "joint"}
    if kind not in known:
        raise WeightsError(f"{checkpoint.source} has attention_type {kind!r}; known here: {', '.join(known)}")
    facts = {**KINETICS, **transformers_facts(checkpoint, layer_norm_eps=1e-6)}
    divided = any(".temporal_attn." in key for key in state)
    return {
        **facts,
        **_sizes(checkpoint, {"image_size": "image_size", "frames": "num_frames"}),
        "attention": "divided" if divided else "joint",
    }


def _ends(state: State) -> dict[str, Any]:
    """What differs between pretrained, fine-tuned and headless checkpoints."""
    final = "pooled" if "fc_norm.weight" in state else "tokens" if "norm.weight" in state else "none"
    return {"final_norm": final, "pool": "mean"}


def _videomae_authors(_: Checkpoint, state: State) -> dict[str, Any]:
    # Fixed waves aren't stored; learned tables are.
    tables = "divided" if "time_embed" in state else "joint"
    learned = {"positions": "learned", "position_tables": tables} if "pos_embed" in state else {}
    return {"layer_norm_eps": 1e-6, **learned, **_ends(state)}


def _videomae(checkpoint: Checkpoint, state: State) -> dict[str, Any]:
    # The norm of the mean is made with the default of torch there, whatever the config says of the others.
    facts = transformers_facts(checkpoint, layer_norm_eps=1e-12) | {"pool_norm_eps": 1e-5}
    sizes = {"image_size": "image_size", "frames": "num_frames", "tubelet": "tubelet_size"}
    return facts | _sizes(checkpoint, sizes) | _ends(state)


def _vjepa2(checkpoint: Checkpoint, _: State) -> dict[str, Any]:
    facts = transformers_facts(checkpoint, layer_norm_eps=1e-6)
    sizes = {"image_size": "crop_size", "frames": "frames_per_clip", "tubelet": "tubelet_size"}
    return facts | _sizes(checkpoint, sizes)


def vivit_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """How transformers' ViViT was built."""
    facts = transformers_facts(checkpoint, layer_norm_eps=1e-6, activation="gelu_fast")
    tubelet = checkpoint.config.get("tubelet_size")
    told = {} if tubelet is None else {"tubelet": tubelet[0]}
    return {**HALF, **facts, **_sizes(checkpoint, {"image_size": "image_size", "frames": "num_frames"}), **told}


# ---------------------------------------------------------------- dialects

_PATCHES, _QKV = "patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight"
_PROJECTION = "embeddings.patch_embeddings.projection.weight"
_SCALES = ("blocks.{i}.gamma_{j}", "blocks.{i}.ls{j}.gamma")
_RELATIONS = ("blocks.{i}.attn.rel_pos_h", "blocks.{i}.attn.relative_position_bias_table")

DIALECTS = (
    Dialect(
        "transformers",
        "timesformer",
        "videovit",
        has=(_PROJECTION, f"{_LAYER}.attention.attention.qkv.weight", "embeddings.time_embeddings"),
        table=TIMESFORMER,
        left_out=("classifier.*",),
        options=_timesformer,
    ),
    Dialect(
        "transformers",
        "videomae",
        "videovit",
        has=(_PROJECTION, f"{_SELF}.query.weight", f"{_LAYER}.layernorm_before.weight"),
        lacks=("embeddings.cls_token", "videomae.embeddings.cls_token"),
        table=VIDEOMAE,
        left_out=("classifier.*", "decoder.*", "encoder_to_decoder.*", "mask_token", "position_embeddings"),
        inner="videomae.",
        options=_videomae,
    ),
    Dialect(
        "transformers",
        "vjepa2",
        "videovit",
        has=("encoder.embeddings.patch_embeddings.proj.weight", f"{_LAYER}.attention.query.weight"),
        table=VJEPA2,
        left_out=("predictor.*", "pooler.*", "classifier.*"),
        options=_vjepa2,
    ),
    Dialect(
        "authors",
        "timesformer",
        "videovit",
        has=(_PATCHES, _QKV, "blocks.{i}.temporal_attn.qkv.weight"),
        table=AUTHORS,
        left_out=("head.*",),
        options=_timesformer_authors,
    ),
    Dialect(
        "authors",
        "videomae",
        "videovit",
        has=(_PATCHES, _QKV, "blocks.{i}.attn.q_bias"),
        lacks=("cls_token", _RELATIONS, _SCALES),
        table=(Row("*", "*"),),
        left_out=("head.*", "mask_token", "decoder.*"),
        options=_videomae_authors,
    ),
)

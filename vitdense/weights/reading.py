"""From any source of weights to tensors under our names."""

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from torch import Tensor

from vitdense.contracts import BackboneConfig
from vitdense.errors import WeightsError
from vitdense.weights import external
from vitdense.weights.contents import Checkpoint, Weights
from vitdense.weights.dialect import detect, without_wrappers
from vitdense.weights.families import DIALECTS
from vitdense.weights.fitting_time import has_time, stored_frames
from vitdense.weights.opening import Source, open_checkpoint
from vitdense.weights.published import published_for
from vitdense.weights.resizing import BIAS_TABLE, position_slots

# What a dialect sees in the tensors themselves.
_SHOWN = {"image_size", "final_norm", "positions", "position_tables", "pool"}

# Options that a backbone of the same name doesn't take over from a run: how it learned, and what it gave.
_OF_TRAINING = {"name", "weights", "out_indices", "drop_path", "grad_checkpointing", "frozen_stages"}

# Options that change the numbers of a network, and no name and no shape in it.
_BUILT = {"layer_norm_eps", "activation", "mean", "std", "num_heads", "window_order", "always_shift", "rope_grid"}
_BUILT |= {"position_interpolation", "position_antialias", "position_offset"}


def read_weights(source: Source, config: BackboneConfig) -> Weights:
    """Opens `source`, tells its dialect by its keys and converts them; `options` has only what `config` knows."""
    if external.architecture_of(config) is not None:
        return external.read_external(source, config)
    return read_checkpoint(open_checkpoint(published_for(config) if source == "default" else source), config)


def read_checkpoint(checkpoint: Checkpoint, config: BackboneConfig) -> Weights:
    """As `read_weights`, of what is open already."""
    if external.architecture_of(config) is not None:
        return external.convert_external(checkpoint, config)
    checkpoint = replace(checkpoint, state=without_wrappers(checkpoint.state))
    dialect, root = detect(checkpoint.state, DIALECTS, checkpoint.source)
    done, left_out = dialect.convert(checkpoint.state, root)
    _refuse_broken(done.state, checkpoint.source)
    told = dialect.options(checkpoint, done.state)
    if _are_ours(checkpoint, dialect.below(checkpoint.state, root), done.state):
        told = {name: told[name] for name in told.keys() & _SHOWN}
    options = (
        _stored_size(done.state, config, {**checkpoint.recipe, **told}, checkpoint.source)
        | told
        | _of_own_run(checkpoint)
    )
    _same_heads(options.pop("num_heads", None), config, checkpoint.source)
    known = type(config).model_fields
    if "activation" not in known and options.get("activation", "gelu") != "gelu":
        raise WeightsError(
            f"{checkpoint.source} was trained with activation {options['activation']!r}; known here: 'gelu'"
        )
    return Weights(
        done.state,
        source=checkpoint.source,
        family=dialect.publisher,
        architecture=dialect.architecture,
        options={name: value for name, value in options.items() if name in known},
        left_out=tuple(left_out),
    )


def own_weights(
    state: Mapping[str, Tensor],
    source: str,
    config: BackboneConfig,
    recipe: Mapping[str, Any],
    left_out: tuple[str, ...],
) -> Weights:
    """The backbone of one of our own runs, under the very names that it has here; `recipe` says how it was built."""
    _refuse_broken(state, source)
    if recipe.get("name") == config.preset:
        options = {name: value for name, value in recipe.items() if name not in _OF_TRAINING}
    else:
        options = _of_own_run(Checkpoint(state, source, recipe=recipe))
    options = _stored_size(state, config, recipe, source) | {
        name: value for name, value in options.items() if value is not None
    }
    _same_heads(options.pop("num_heads", None), config, source)
    known = {name: value for name, value in options.items() if name in type(config).model_fields}
    kind = type(config).__name__.removesuffix("Config").lower()
    return Weights(state, source, family="vitdense", architecture=kind, options=known, left_out=left_out)


def _are_ours(checkpoint: Checkpoint, below: Mapping[str, str], state: Mapping[str, Tensor]) -> bool:
    """Whether every tensor has our name and shape already, with no file beside it that says whose network it was.

    Our names are timm's, so that these may be either's: how the network was built is then the preset's to say.
    """
    same = below.keys() == state.keys() and all(checkpoint.state[below[key]].shape == state[key].shape for key in state)
    return same and not checkpoint.config and not checkpoint.preprocessor


def _of_own_run(checkpoint: Checkpoint) -> dict[str, Any]:
    """How the backbone of one of our own runs was built, apart from what shows in its tensors."""
    return {name: checkpoint.recipe[name] for name in _BUILT if checkpoint.recipe.get(name) is not None}


def _same_heads(theirs: int | tuple[int, ...] | list[int] | None, config: BackboneConfig, source: str) -> None:
    """The number of heads shows in no tensor's shape, so that a wrong one would load and be silently wrong."""
    ours = config.model_dump().get("num_heads")
    theirs = tuple(theirs) if isinstance(theirs, list) else theirs
    # One number for a pyramid of several, or several for one: its shapes tell of another family.
    if theirs is not None and type(theirs) is type(ours) and theirs != ours:
        raise WeightsError(f"{source} has {theirs} attention heads, and num_heads is {ours} here")


def _stored_size(
    state: Mapping[str, Tensor], config: BackboneConfig, told: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """The image size whose grid the tables of positions have, so that they are kept as published."""
    if has_time(state):
        return stored_frames(state, config.model_dump(), told, source)
    kernel, relations = state.get("patch_embed.proj.weight"), state.get(f"blocks.0.attn.{BIAS_TABLE}")
    table, slots = state.get("pos_embed"), position_slots(state)
    if kernel is None:
        return {}
    if table is not None and slots is not None:
        return {"image_size": isqrt(table.shape[1] - slots) * kernel.shape[-1]}
    if relations is not None:
        return {"image_size": (isqrt(relations.shape[0] - 3) + 1) // 2 * kernel.shape[-1]}
    return {}


def _refuse_broken(state: Mapping[str, Tensor], source: str) -> None:
    numbers = {key: tensor for key, tensor in state.items() if tensor.is_floating_point() and not tensor.is_meta}
    broken = [key for key, tensor in numbers.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(
            f"{source} has values that are not finite in {', '.join(broken[:4])} ({len(broken)} tensors)"
        )

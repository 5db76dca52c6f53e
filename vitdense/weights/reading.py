"""From any source of weights to tensors under our names."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitdense.contracts import BackboneConfig
from vitdense.errors import WeightsError
from vitdense.weights import external, timm, torchvision, transformers
from vitdense.weights.contents import Checkpoint, Weights
from vitdense.weights.families import Family, detect, name_final_norm, without_wrappers
from vitdense.weights.opening import Source, open_checkpoint
from vitdense.weights.published import published_for
from vitdense.weights.resizing import position_slots

# Swin before ViT: a stage of a Swin looks like a ViT from within.
FAMILIES: tuple[Family, ...] = (*reversed(transformers.FAMILIES), *torchvision.FAMILIES, *timm.FAMILIES)


def read_weights(source: Source, config: BackboneConfig) -> Weights:
    """Opens `source`, tells its family by its keys and converts them; `options` has only what `config` knows."""
    if external.architecture_of(config) is not None:
        return external.read_external(source, config)
    checkpoint = open_checkpoint(published_for(config) if source == "default" else source)
    checkpoint = Checkpoint(
        without_wrappers(checkpoint.state), checkpoint.source, checkpoint.config, checkpoint.preprocessor
    )
    family, root = detect(checkpoint.state, FAMILIES, checkpoint.source)
    state, left_out = family.convert(checkpoint.state, root)
    options = family.options(checkpoint, state)
    _same_heads(options.pop("num_heads", None), config, checkpoint.source)
    if family.architecture == "swin":
        state, replaced = name_final_norm(state)
        left_out += replaced
    options |= _stored_size(state)
    _refuse_broken(state, checkpoint.source)
    return Weights(
        state,
        source=checkpoint.source,
        family=family.name,
        architecture=family.architecture,
        options={name: value for name, value in options.items() if name in type(config).model_fields},
        left_out=tuple(left_out),
    )


def architecture_of(state: Mapping[str, Tensor]) -> str:
    """What these keys of ours belong to: "vit", "swin", or "another backbone"."""
    for family in timm.FAMILIES:
        if "" in family.roots(state):
            return family.architecture
    return "another backbone"


def _same_heads(theirs: int | None, config: BackboneConfig, source: str) -> None:
    """The number of heads shows in no tensor's shape, so that a wrong one would load and be silently wrong."""
    ours = config.model_dump().get("num_heads")
    if theirs is not None and isinstance(ours, int) and theirs != ours:
        raise WeightsError(f"{source} has {theirs} attention heads, and num_heads is {ours} here")


def _stored_size(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The image size whose grid the position table has, so that it is kept as published."""
    table, kernel, registers = (state.get(name) for name in ("pos_embed", "patch_embed.proj.weight", "reg_token"))
    if table is None or kernel is None or table.ndim != 3:
        return {}
    slots = position_slots(table.shape[1], 0 if registers is None else registers.shape[1])
    return {} if slots is None else {"image_size": math.isqrt(table.shape[1] - slots) * kernel.shape[-1]}


def _refuse_broken(state: Mapping[str, Tensor], source: str) -> None:
    broken = [key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise WeightsError(
            f"{source} has values that are not finite in {', '.join(broken[:4])} ({len(broken)} tensors)"
        )

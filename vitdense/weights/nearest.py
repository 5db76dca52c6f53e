"""Which registered backbone a set of weights looks like: asked only when loading has failed."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from vitdense.contracts import BACKBONES

Shapes = frozenset[tuple[str, tuple[int, ...]]]

# Below this share of keys in common, weights look like nothing that is known.
_ENOUGH = 0.5


def nearest_presets(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """The presets that share most names and shapes with `state`; none if `wanted` shares as many, or all share few."""
    theirs = _shapes(state)
    shared = {name: _alike(theirs, _shapes_of(name)) for name in BACKBONES.names()}
    most = max(shared.values())
    if most <= max(_alike(theirs, _shapes(wanted)), _ENOUGH):
        return []
    return [name for name, share in shared.items() if share == most]


@lru_cache(maxsize=512)
def _shapes_of(name: str) -> Shapes:
    with torch.device("meta"):
        return _shapes(BACKBONES.create(name).build().state_dict())


def _alike(some: Shapes, others: Shapes) -> float:
    return len(some & others) / max(len(some | others), 1)


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes, without what is made to fit: position tables, norms of outputs, input channels."""
    kept = []
    for key, tensor in state.items():
        if (
            key in ("pos_embed", "time_embed")
            or key.endswith("relative_position_bias_table")
            or key.startswith("norms.")
        ):
            continue
        shape = tuple(tensor.shape)
        kept.append((key, (shape[0], *shape[2:]) if key.startswith("patch_embed.") and len(shape) > 3 else shape))
    return frozenset(kept)

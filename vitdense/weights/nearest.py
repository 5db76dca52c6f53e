"""Which registered backbone a set of weights looks like: asked only when loading has failed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vitdense.contracts import BACKBONES

Shapes = frozenset[tuple[str, tuple[int, ...]]]

# Below this share of common keys, weights look like nothing that is known.
_ENOUGH = 0.5


def nearest_preset(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The preset that shares most names and shapes with `state`; None if `wanted` shares as many, or none does."""
    theirs = _shapes(state)
    best, most = None, max(_alike(theirs, _shapes(wanted)), _ENOUGH)
    for name in BACKBONES.names():
        with torch.device("meta"):
            preset = BACKBONES.create(name).build().state_dict()
        alike = _alike(theirs, _shapes(preset))
        if alike > most:
            best, most = name, alike
    return best


def _alike(some: Shapes, others: Shapes) -> float:
    return len(some & others) / max(len(some | others), 1)


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes, without what is made to fit: position tables, norms of outputs, input channels."""
    kept = []
    for key, tensor in state.items():
        if key == "pos_embed" or key.endswith("relative_position_bias_table") or key.startswith("norms."):
            continue
        shape = tuple(tensor.shape)
        kept.append((key, (shape[0], *shape[2:]) if key.startswith("patch_embed.") and len(shape) == 4 else shape))
    return frozenset(kept)

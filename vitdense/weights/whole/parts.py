"""A whole published model in our terms: its backbone, adapter and head, and the tensors of each."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from vitdense.contracts import BackboneConfig
from vitdense.errors import WeightsError
from vitdense.preprocessing import Preprocess
from vitdense.weights.contents import Checkpoint, Weights
from vitdense.weights.reading import read_checkpoint

# What a publisher keeps of a backbone that no forward pass of a whole model looks at.
_IDLE = (
    "*.relative_position_index",
    "*.attn_mask",
    "*mask_token",
    "*pooler.*",
    "*hidden_states_norms.stem.*",
    "*swin.layernorm.*",
    "*.num_batches_tracked",
)


@dataclass(frozen=True)
class Part:
    """An adapter or a head: its registry name, the options it was built with, and its tensors under our names."""

    name: str
    options: Mapping[str, Any]
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class Whole:
    """A published model in our terms.

    `weights` is the backbone's part of the checkpoint; its `left_out` may name nothing but what is idle. `strides`
    stand in for the backbone's where its maps have one size, and the publisher's head takes them as they are.
    `multiple` is what its pictures must divide by: other sizes are padded, as they were for nobody's training.
    `left_out` are keys of a head's that no forward pass looks at. `inference` are options of it, which rank below a
    user's; `preprocess` is what contrastive models are shown of a picture.
    """

    source: str
    backbone: str
    options: Mapping[str, Any]
    weights: Checkpoint
    head: Part
    adapter: Part | None = None
    strides: tuple[int, ...] | None = None
    multiple: int = 1
    classes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    inference: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Preprocess | None = None

    def read_backbone(self, config: BackboneConfig) -> Weights:
        """The backbone's tensors under our names; WeightsError names those that have no place in it."""
        weights = read_checkpoint(self.weights, config)
        homeless = [key for key in weights.left_out if not any(fnmatchcase(key, idle) for idle in _IDLE)]
        if homeless:
            raise WeightsError(f"{self.source}: {self.backbone} has no place for {first(homeless)}")
        return weights


@dataclass
class Parts:
    """The tensors of a checkpoint, taken out part by part, so that in the end none is left."""

    source: str
    state: dict[str, Tensor]

    def take(self, *prefixes: str, strip: str = "", put: str = "") -> dict[str, Tensor]:
        """The tensors whose names begin so, with `put` in the place of `strip`."""
        keys = [key for key in self.state if key.startswith(prefixes)]
        return {put + key.removeprefix(strip): self.state.pop(key) for key in keys}

    def finish(self, strange: Iterable[str] = ()) -> None:
        """WeightsError where tensors are left that belong to no part, or `strange` ones to none of a part's."""
        left = [*self.state, *strange]
        if left:
            raise WeightsError(f"{self.source} has tensors that belong to no part of its model: {first(left)}")


def named_classes(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """The names of `count` classes by id2label; numbers where it has others."""
    labels = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    return tuple(labels.get(index, f"LABEL_{index}") for index in range(count))


def expect(source: str, config: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """WeightsError where a config says what isn't built here; what it lacks, or has as null, is at its default."""
    for name, value in wanted.items():
        given = config.get(name)
        given = value if given is None else tuple(given) if isinstance(given, list) else given
        if given != value:
            raise WeightsError(f"{source} has {name} {given!r}; known here: {value!r}")


def count_of(keys: Iterable[str], pattern: str) -> int:
    """How many different numbers stand at the first group of a pattern."""
    return len({match[1] for key in keys if (match := re.match(pattern, key))})


def square(source: str, size: int | list[int] | None) -> int:
    """One number for a size that is square."""
    sides = [size, size] if isinstance(size, int) else list(size or [])
    if len(set(sides)) != 1:
        raise WeightsError(f"{source} has an image or patch size of {size}; known here: squares")
    return sides[0]


def first(keys: Iterable[str], most: int = 6) -> str:
    """The first few keys."""
    names = sorted(keys)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")

"""What a checkpoint holds: as it was opened, after its keys were converted to ours, and on its way into a backbone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under their publisher's names, with what config.json and preprocessor_config.json beside them say.

    `recipe` is our own: how the backbone of a run was built.
    """

    state: Mapping[str, Tensor]
    source: str
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """Tensors under our names, and the options that the network they come from was built with.

    `options` rank below what a user sets; `left_out` are keys that a backbone has no place for, such as a classifier;
    `fresh` are in `state` as a library makes them, since its checkpoint lacks them.
    """

    state: Mapping[str, Tensor]
    source: str
    family: str
    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


@dataclass
class Fitting:
    """A state on its way into one backbone, whose tensors are `wanted`, with what was done to it."""

    state: dict[str, Tensor]
    wanted: dict[str, Tensor]
    options: Mapping[str, Any]
    left_out: list[str]
    resized: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

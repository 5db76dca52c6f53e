"""Weights of backbones that another library builds: their keys stay, below the name `model`."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

from torch import Tensor

from vitdense.contracts import BackboneConfig
from vitdense.weights.contents import Checkpoint, Weights
from vitdense.weights.opening import Source, open_checkpoint

# Wrappers that stand for nothing: DataParallel and torch.compile; the libraries know their own.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")


class Converted(Protocol):
    """A checkpoint under the network's own names, and what became of the rest."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Tensors."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Facts that rank below a user's options."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Keys without a place."""

    @property
    def fresh(self) -> tuple[str, ...]:
        """Keys that the checkpoint lacks."""


class Theirs(Protocol):
    """What the config of another library's network knows of its weights."""

    library: ClassVar[str]
    architecture: str

    def locate(self, source: str) -> Any:
        """Where the weights of "default", or of another name, can be opened."""

    def convert(self, state: Mapping[str, Tensor], facts: Mapping[str, Any], source: str) -> Converted:
        """Tensors, and what the files beside them say -> tensors under the network's own names."""


def architecture_of(config: BackboneConfig) -> str | None:
    """The other library's name of the network, or None for a backbone of our own."""
    name: str | None = config.model_dump().get("architecture")
    return name


def read_external(source: Source, config: BackboneConfig) -> Weights:
    """The library's own weights from "default" or its names for them, or a checkpoint under its names or ours."""
    theirs = cast(Theirs, config)
    checkpoint = open_checkpoint(theirs.locate(source) if isinstance(source, str) else source)
    named = str(source) if isinstance(source, str | Path) else "a mapping"
    found = convert_external(replace(checkpoint, source=named), config)
    return replace(found, source=f"{theirs.library}/{theirs.architecture}") if named == "default" else found


def convert_external(checkpoint: Checkpoint, config: BackboneConfig) -> Weights:
    """As `read_external`, of what is open already."""
    theirs = cast(Theirs, config)
    state = {_WRAPPERS.sub("", key): tensor for key, tensor in checkpoint.state.items()}
    if all(key.startswith("model.") for key in state):
        state = {key.removeprefix("model."): tensor for key, tensor in state.items()}
    found = theirs.convert(state, {**checkpoint.preprocessor, **checkpoint.config}, checkpoint.source)
    return Weights(
        {f"model.{key}": tensor for key, tensor in found.state.items()},
        source=checkpoint.source,
        family=theirs.library,
        architecture=theirs.architecture,
        options=found.options,
        left_out=found.left_out,
        fresh=tuple(f"model.{key}" for key in found.fresh),
    )

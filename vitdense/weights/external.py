"""Weights of backbones that another library builds: their keys stay, below the name `model`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

from vitdense.contracts import BackboneConfig
from vitdense.weights.contents import Weights
from vitdense.weights.dialect import without_wrappers
from vitdense.weights.opening import Source, open_checkpoint


class Converted(Protocol):
    """A checkpoint under the network's own names, and what became of the rest."""

    state: Mapping[str, Tensor]
    options: Mapping[str, Any]
    left_out: tuple[str, ...]
    fresh: tuple[str, ...]


class Theirs(Protocol):
    """What the config of another library's network knows of its weights."""

    architecture: str
    library: str

    def locate(self, source: str) -> Any:
        """ "default", or another name -> what can be opened."""

    def convert(self, state: Mapping[str, Tensor], facts: Mapping[str, Any], source: str) -> Converted:
        """Tensors, and the config.json beside them -> tensors under the network's own names."""


def architecture_of(config: BackboneConfig) -> str | None:
    """The other library's name of the network, or None for a backbone of our own."""
    name: str | None = config.model_dump().get("architecture")
    return name


def read_external(source: Source, config: BackboneConfig) -> Weights:
    """The library's own weights from "default" or its names for them, or a checkpoint under its names or ours."""
    theirs = cast(Theirs, config)
    label = f"{theirs.library}/{theirs.architecture}"
    described = source if isinstance(source, str | Path) else "a mapping"
    located = theirs.locate(source) if isinstance(source, str) else source
    checkpoint = open_checkpoint(located)
    state = without_wrappers(checkpoint.state)
    if all(key.startswith("model.") for key in state):
        state = {key.removeprefix("model."): tensor for key, tensor in state.items()}
    found = theirs.convert(state, {**checkpoint.preprocessor, **checkpoint.config}, str(described))
    return Weights(
        {f"model.{key}": tensor for key, tensor in found.state.items()},
        source=label if source == "default" else str(described),
        family=theirs.library,
        architecture=theirs.architecture,
        options=found.options,
        left_out=found.left_out,
    )

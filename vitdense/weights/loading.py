"""Strict loading: every key is accounted for in the report, or loading fails and names it."""

import re

import torch
from torch import Tensor, nn

from vitdense.contracts import Backbone, LoadReport
from vitdense.errors import WeightsError
from vitdense.weights.contents import Weights
from vitdense.weights.reading import architecture_of
from vitdense.weights.resizing import adapt_input_channels, position_slots, resize_bias_table, resize_table

_BIAS_TABLE = "relative_position_bias_table"


class _Fitting:
    """The state on its way into one backbone, with what was done to it."""

    def __init__(self, weights: Weights, wanted: dict[str, Tensor]) -> None:
        self.wanted = wanted
        self.state = dict(weights.state)
        self.left_out = list(weights.left_out)
        self.resized: list[str] = []
        self.adapted: list[str] = []
        self.fresh: list[str] = []

    def fit(self) -> None:
        """Every tensor that may differ in geometry, in the one way that keeps its meaning."""
        self._position_slots()
        for key, tensor in list(self.state.items()):
            if key in self.wanted and tensor.shape != self.wanted[key].shape:
                self._reshape(key, tensor, self.wanted[key])
        self._output_norms()

    def _reshape(self, key: str, tensor: Tensor, wanted: Tensor) -> None:
        if key.endswith(_BIAS_TABLE) and tensor.shape[1:] == wanted.shape[1:]:
            self.state[key] = resize_bias_table(tensor, wanted.shape[0])
            self.resized.append(key)
        elif key == "pos_embed" and tensor.shape[-1] == wanted.shape[-1] and self._grid_differs(tensor, wanted):
            slots = self._wanted_slots()
            grid = resize_table(tensor[:, slots:], round((wanted.shape[1] - slots) ** 0.5))
            self.state[key] = torch.cat([tensor[:, :slots], grid], dim=1)
            self.resized.append(key)
        elif tensor.ndim == 4 and tensor.shape[1] == 3 and _without_inputs(tensor) == _without_inputs(wanted):
            self.state[key] = adapt_input_channels(tensor, wanted.shape[1])
            self.adapted.append(key)

    def _wanted_slots(self) -> int:
        return int("cls_token" in self.wanted)

    def _grid_differs(self, tensor: Tensor, wanted: Tensor) -> bool:
        slots = self._wanted_slots()
        side = round(max(tensor.shape[1] - slots, 0) ** 0.5)
        return side > 0 and side * side == tensor.shape[1] - slots and tensor.shape != wanted.shape

    def _position_slots(self) -> None:
        """Ours has a row for the class token alone: rows are added, or folded into the tokens they are added to."""
        table, registers = self.state.get("pos_embed"), self.state.get("reg_token")
        if table is None or table.ndim != 3 or "cls_token" not in self.wanted:
            return
        slots = position_slots(table.shape[1], 0 if registers is None else registers.shape[1])
        if slots == 0:
            self.state["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
            self.adapted.append("pos_embed")
        elif slots is not None and slots > 1 and registers is not None:
            self.state["reg_token"] = registers + table[:, 1:slots]
            self.state["pos_embed"] = torch.cat([table[:, :1], table[:, slots:]], dim=1)
            self.adapted += ["pos_embed", "reg_token"]

    def _output_norms(self) -> None:
        """Norms of outputs: a classifier's checkpoint lacks them, and a network with fewer outputs has fewer."""
        ours = {key for key in self.wanted if re.match(r"norms\.\d+\.", key)}
        theirs = {key for key in self.state if re.match(r"norms\.\d+\.", key)}
        for key in sorted(theirs - ours):
            del self.state[key]
            self.left_out.append(key)
        for key in sorted(ours - theirs):
            self.state[key] = self.wanted[key]
            self.fresh.append(key)


def load_weights(backbone: Backbone, weights: Weights) -> LoadReport:
    """Puts `weights` into `backbone`; raises WeightsError where a key is missing, unexpected or of another shape."""
    wanted = backbone.state_dict()
    _same_architecture(wanted, weights)
    fitting = _Fitting(weights, wanted)
    fitting.fit()
    faults = _faults(fitting.state, wanted)
    if faults:
        raise WeightsError(f"{weights.source} [{weights.family}] doesn't fit {_named(backbone)}: {'; '.join(faults)}")
    backbone.load_state_dict(fitting.state, strict=True)
    changed = {*fitting.resized, *fitting.adapted, *fitting.fresh}
    return LoadReport(
        source=weights.source,
        family=weights.family,
        matched=tuple(key for key in wanted if key not in changed),
        resized=tuple(fitting.resized),
        adapted=tuple(fitting.adapted),
        left_out=tuple(fitting.left_out),
        fresh=tuple(fitting.fresh),
    )


def _same_architecture(wanted: dict[str, Tensor], weights: Weights) -> None:
    ours = architecture_of(wanted)
    if "another backbone" in (ours, architecture_of(weights.state)):
        return
    if ours != weights.architecture:
        raise WeightsError(
            f"{weights.source} looks like {weights.family} weights of a {weights.architecture}, expected a {ours}"
        )


def _without_inputs(kernel: Tensor) -> tuple[int, ...]:
    return (kernel.shape[0], *kernel.shape[2:])


def _faults(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    misshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    named = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
    return [f"{len(keys)} {name}: {_first(keys)}" for name, keys in named if keys]


def _first(keys: list[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")


def _named(module: nn.Module) -> str:
    return type(module).__name__

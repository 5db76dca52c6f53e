"""Tensors that may differ in geometry from the backbone's, made to fit in the one way that keeps their meaning."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.layers.position import resize_positions
from vitdense.weights.contents import Fitting, Weights
from vitdense.weights.fitting_time import fit_time, has_time
from vitdense.weights.resizing import (
    BIAS_TABLE,
    adapt_input_channels,
    position_slots,
    resize_bias_table,
    resize_distances,
)

# What may follow the blocks, and is left out of a backbone that ends otherwise.
_ENDS = ("norm.", "fc_norm.", "attn_pool.", "neck.")
_OUTPUT_NORM = re.compile(r"norms\.\d+\.")


def fit(weights: Weights, backbone: Backbone) -> Fitting:
    """The weights, made to fit a backbone where that can be done."""
    options = {} if backbone.config is None else backbone.config.model_dump()
    wanted = backbone.state_dict()
    fitting = Fitting(dict(weights.state), wanted, options, list(weights.left_out), fresh=list(weights.fresh))
    if not has_time(fitting.state):
        _position_rows(fitting)
    if has_time(wanted):
        fit_time(fitting, weights.options)
    _absent_biases(fitting)
    for key, tensor in list(fitting.state.items()):
        if key in wanted and tensor.shape != wanted[key].shape:
            _reshape(fitting, key, tensor, wanted[key])
    _ends(fitting)
    _output_norms(fitting)
    return fitting


def _reshape(fitting: Fitting, key: str, tensor: Tensor, wanted: Tensor) -> None:
    if key.endswith(BIAS_TABLE) and tensor.shape[1:] == wanted.shape[1:]:
        fitting.state[key] = resize_bias_table(tensor, wanted.shape[0])
        fitting.resized.append(key)
    elif key.endswith(("rel_pos_h", "rel_pos_w")) and tensor.shape[1:] == wanted.shape[1:]:
        fitting.state[key] = resize_distances(tensor, wanted.shape[0])
        fitting.resized.append(key)
    elif key == "pos_embed" and tensor.shape[-1] == wanted.shape[-1] and _square(tensor.shape[1] - _rows(fitting)):
        fitting.state[key] = _resized_positions(tensor, _rows(fitting), wanted.shape[1], fitting.options)
        fitting.resized.append(key)
    elif tensor.ndim in (4, 5) and tensor.shape[1] == 3 and _without_inputs(tensor) == _without_inputs(wanted):
        fitting.state[key] = adapt_input_channels(tensor, wanted.shape[1])
        fitting.adapted.append(key)


def _resized_positions(table: Tensor, rows: int, length: int, options: Mapping[str, Any]) -> Tensor:
    """The table of another grid, as the backbone itself would make it for a picture of that size."""
    stored, side = isqrt(table.shape[1] - rows), isqrt(length - rows)
    grid = resize_positions(
        table[:, rows:].reshape(1, stored, stored, -1),
        (side, side),
        interpolation=options.get("position_interpolation", "bicubic"),
        antialias=options.get("position_antialias", True),
        offset=options.get("position_offset", 0.0),
    )
    return torch.cat([table[:, :rows], grid.flatten(1, 2)], dim=1)


def _rows(fitting: Fitting) -> int:
    """How many rows our position table has before its grid."""
    return sum(fitting.wanted[name].shape[1] for name in ("cls_token", "dist_token") if name in fitting.wanted)


def _square(count: int) -> bool:
    return count > 0 and round(count**0.5) ** 2 == count


def _without_inputs(kernel: Tensor) -> tuple[int, ...]:
    return (kernel.shape[0], *kernel.shape[2:])


def _position_rows(fitting: Fitting) -> None:
    """Ours has rows for the class and distillation tokens: rows are added, left out, or folded into their tokens."""
    state, ours = fitting.state, _rows(fitting)
    table, wanted = state.get("pos_embed"), fitting.wanted.get("pos_embed")
    if table is None or wanted is None or table.ndim != 3:
        return
    theirs = position_slots(state)
    if theirs is None or theirs == ours:
        return
    grid = table[:, theirs:]
    tokens = sum(state[name].shape[1] for name in ("cls_token", "dist_token") if name in state)
    if theirs == 0:
        state["pos_embed"] = torch.cat([torch.zeros_like(table[:, :ours]), grid], dim=1)
    elif ours == 0 and theirs == max(tokens, 1):
        state["pos_embed"] = grid
        _leave_out(fitting, [name for name in ("cls_token", "dist_token") if name in state])
        fitting.left_out.append(f"pos_embed[:, :{theirs}]")
    elif theirs > tokens == ours:
        state["reg_token"] = state["reg_token"] + table[:, tokens:theirs]
        state["pos_embed"] = torch.cat([table[:, :tokens], grid], dim=1)
        fitting.adapted.append("reg_token")
    else:
        return
    fitting.adapted.append("pos_embed")


def _ends(fitting: Fitting) -> None:
    """A backbone may pool in another way than its weights were trained with, and have another norm behind that."""
    for end in _ENDS:
        theirs = [key for key in fitting.state if key.startswith(end)]
        if not any(key.startswith(end) for key in fitting.wanted):
            _leave_out(fitting, theirs)


def _leave_out(fitting: Fitting, keys: list[str]) -> None:
    for key in keys:
        del fitting.state[key]
        fitting.left_out.append(key)


def _absent_biases(fitting: Fitting) -> None:
    """Biases that no block of theirs has are zeros here, as of timm's DINOv3, where none was learned."""
    ours = [key for key in fitting.wanted if key.endswith((".attn.q_bias", ".attn.v_bias"))]
    theirs = [key for key in fitting.state if key.endswith((".attn.q_bias", ".attn.v_bias", ".attn.qkv.bias"))]
    if not theirs:
        for key in ours:
            fitting.state[key] = torch.zeros_like(fitting.wanted[key])
            fitting.adapted.append(key)


def _output_norms(fitting: Fitting) -> None:
    """Norms of outputs: a classifier's checkpoint lacks them, and a network with fewer outputs has fewer."""
    ours = {key for key in fitting.wanted if _OUTPUT_NORM.match(key)}
    theirs = {key for key in fitting.state if _OUTPUT_NORM.match(key)}
    _leave_out(fitting, sorted(theirs - ours))
    for key in sorted(ours - theirs):
        fitting.state[key] = fitting.wanted[key]
        fitting.fresh.append(key)

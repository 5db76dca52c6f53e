"""Tensors made to fit backbones of clips: tables with a time axis, kernels and blocks of picture networks."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.layers.inflation import inflate_kernel, repeat_positions, still_in_time
from vitdense.layers.position import resize_positions
from vitdense.layers.space_time_position import resize_times, resize_volume
from vitdense.weights.contents import Fitting

_KERNEL = "patch_embed.proj.weight"
_SECOND = ("time_token", "time_embed", "time_blocks.", "time_norm.")


def has_time(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a network of clips or volumes: its patches have three dimensions."""
    return _KERNEL in state and state[_KERNEL].ndim == 5


def stored_frames(
    state: Mapping[str, Tensor], config: Mapping[str, Any], told: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """The image size and the frames that a network's tables are stored for: as `told` by files, or by their lengths.

    A table of all cells of a grid (times x side x side) says nothing of its sides. It has the config's, or its times or
    its side alone where that leaves a whole grid; WeightsError where both do, since one of them would be wrong.
    """
    kernel, table, times = state[_KERNEL], state.get("pos_embed"), state.get("time_embed")
    found = {name: told[name] for name in ("frames", "image_size") if told.get(name) is not None}
    if table is None or "frames" not in config:  # a network of pictures has no place for any of it
        return found
    known = {**config, **found}
    tubelet, patch = kernel.shape[2], kernel.shape[-1]
    stored, side = -(-known["frames"] // tubelet), known["image_size"] // patch
    cells = table.shape[1] - _rows(state)
    if times is not None:
        count = times.shape[1] - ("time_token" in state)
        lengths = {"frames": count * tubelet} if count != stored else {}
        return found | lengths | ({"image_size": isqrt(cells) * patch} if isqrt(cells) != side else {})
    if cells == stored * side**2:
        return found
    square = isqrt(cells // stored)
    by_times, by_side = stored * square**2 == cells, side > 0 and cells % side**2 == 0
    if by_times and by_side:
        raise WeightsError(
            f"{source} has positions of {cells} patches, which may be {stored} x {square} x {square} or "
            f"{cells // side**2} x {side} x {side}: give the frames and the image_size that they were made for"
        )
    return found | ({"image_size": square * patch} if by_times else {})


def _rows(state: Mapping[str, Tensor]) -> int:
    """Rows of a table of positions before its grid."""
    return sum(state[name].shape[1] for name in ("cls_token", "dist_token") if name in state)


def fit_time(fitting: Fitting, theirs: Mapping[str, Any]) -> None:
    """What a backbone of clips needs, from weights of clips at another size or length, or of pictures.

    theirs: the options of the weights, which say what their tables are stored for.
    """
    state, wanted = fitting.state, fitting.wanted
    pictures = not has_time(state)
    if "pos_embed" in state and "pos_embed" in wanted and state["pos_embed"].shape != wanted["pos_embed"].shape:
        _fit_positions(fitting, theirs, pictures)
    _fit_times(fitting)
    if pictures and _KERNEL in state:
        state[_KERNEL] = inflate_kernel(state[_KERNEL], wanted[_KERNEL].shape[2], fitting.options["inflation"])
        fitting.adapted.append(_KERNEL)
    if not any(".temporal_" in key for key in state):
        second = fitting.options["attention"] == "factorised_encoder"
        made = still_in_time(state, {key: each for key, each in wanted.items() if not (second and key in _SECOND)})
        state.update(made)
        fitting.adapted += made
    if pictures:
        fresh = [key for key in wanted if key.startswith(_SECOND) and key not in state]
        state.update({key: wanted[key] for key in fresh})
        fitting.fresh += fresh


def _fit_positions(fitting: Fitting, theirs: Mapping[str, Any], pictures: bool) -> None:
    """The table of another grid, as the backbone itself would make it for a clip of that size and length."""
    table, options = fitting.state["pos_embed"], fitting.options
    rows, patch = _rows(fitting.wanted), options["patch_size"]
    side, joint = options["image_size"] // patch, options["position_tables"] == "joint"
    times = -(-options["frames"] // options["tubelet"])
    resizing = {"interpolation": options["position_interpolation"], "antialias": options["position_antialias"]}
    flat = pictures or not joint
    cells = table.shape[1] - rows
    theirs_side = isqrt(max(cells, 0)) if flat else theirs.get("image_size", side * patch) // patch
    theirs_times = 1 if flat else cells // max(theirs_side, 1) ** 2
    if rows + theirs_times * theirs_side**2 != table.shape[1] or not theirs_side:
        return
    stored = table[:, rows:].reshape(1, theirs_times, theirs_side, theirs_side, -1)
    if flat:
        grid = resize_positions(stored[:, 0], (side, side), **resizing).flatten(1, 2)
    else:
        how = options["time_interpolation"]
        grid = resize_volume(stored, (times, side, side), time_interpolation=how, **resizing).flatten(1, 3)
    found = torch.cat([table[:, :rows], grid], dim=1)
    fitting.state["pos_embed"] = repeat_positions(found, rows, times) if flat and joint else found
    (fitting.adapted if pictures and theirs_side == side else fitting.resized).append("pos_embed")


def _fit_times(fitting: Fitting) -> None:
    """A table of times of another length; that of the factorised encoder has a row for its token first."""
    table, wanted = fitting.state.get("time_embed"), fitting.wanted.get("time_embed")
    if table is None or wanted is None or table.shape == wanted.shape:
        return
    rows = int("time_token" in fitting.wanted)
    times = resize_times(table[:, rows:], wanted.shape[1] - rows, interpolation=fitting.options["time_interpolation"])
    fitting.state["time_embed"] = torch.cat([table[:, :rows], times], dim=1)
    fitting.resized.append("time_embed")

"""Tensors of one geometry made to fit another: position tables, window biases, input channels."""

from collections.abc import Mapping
from math import ceil, isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.layers.relative import resize_relations

BIAS_TABLE = "relative_position_bias_table"


def position_slots(state: Mapping[str, Tensor]) -> int | None:
    """Rows of `pos_embed` that stand before the grid: the class and distillation tokens', none, all tokens', or one.

    One without a class token is ViTDet's, which keeps the row of the pretraining's.
    """
    table = state.get("pos_embed")
    if table is None or table.ndim != 3:
        return None
    length = table.shape[1]
    tokens = sum(state[name].shape[1] for name in ("cls_token", "dist_token") if name in state)
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    for slots in (tokens, 0, tokens + registers, 1):
        side = isqrt(max(length - slots, 0))
        if side and side * side == length - slots:
            return slots
    return None


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """table: ((2 w - 1)**2, heads) -> (rows, heads), the table of another window, bicubic.

    Three rows more are those of a class token: such a table is BEiT's, and resized as its attention does.
    """
    if isqrt(rows) ** 2 != rows:
        stored, side = (isqrt(count - 3) // 2 + 1 for count in (table.shape[0], rows))
        return resize_relations(table, stored, (side, side))
    old, new = isqrt(table.shape[0]), isqrt(rows)
    square = table.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, heads, n, n)
    resized = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False, antialias=new < old)
    return resized.flatten(2)[0].mT.to(table.dtype)  # (rows, heads)


def resize_distances(table: Tensor, rows: int) -> Tensor:
    """table: (2 n - 1, d) -> (rows, d), linear, as SAM's."""
    return F.interpolate(table.mT[None], size=rows, mode="linear", align_corners=False)[0].mT


def adapt_input_channels(kernel: Tensor, channels: int) -> Tensor:
    """kernel: (out, 3, h, w) -> (out, channels, h, w): summed for one channel, else repeated and scaled."""
    if channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    repeated = torch.cat([kernel] * ceil(channels / 3), dim=1)[:, :channels]
    return repeated * (3 / channels)

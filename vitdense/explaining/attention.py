"""Attention maps of any layer, and attention rollout (https://arxiv.org/abs/2005.00928), for every own backbone."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.layers.looks import Look

Query = Literal["cls", "mean"] | tuple[int, int]
"""Who looks: the class token, all cells alike, or the cell in (row, column)."""


@torch.no_grad()
def attention_maps(backbone: Backbone, images: Tensor, *, layer: int = -1, query: Query | None = None) -> Tensor:
    """images: (B, C, H, W), normalised -> (B, heads, h, w): how much each cell of a layer is looked at.

    `query` is "cls" where there is a class token, else "mean". What goes to class and register tokens is not in the
    maps, so that they sum up to less than 1 then. UserError for layers and cells that are not there.
    """
    blocks = backbone.attention_blocks()
    if not -len(blocks) <= layer < len(blocks):
        raise UserError(f"no layer {layer}: {type(backbone).__name__} has {len(blocks)}, 0 to {len(blocks) - 1}")
    (look,) = _looks(backbone, images, [blocks[layer]], merge=False)
    return torch.unflatten(look.seen(_asking(look, images, query))[..., look.num_prefix :], -1, look.grid)


@torch.no_grad()
def attention_rollout(backbone: Backbone, images: Tensor, *, query: Query | None = None) -> Tensor:
    """images: (B, C, H, W), normalised -> (B, h, w) on the first layer's grid: what reaches `query` in the last one.

    Each layer passes on the half of a token as it is and the half as its heads attend on average; where four cells
    become one, each of them has a quarter of it.
    """
    looks = _looks(backbone, images, backbone.attention_blocks(), merge=True)
    reached = _asking(looks[-1], images, query)
    before = looks[-1]
    for look in reversed(looks):
        if look.grid != before.grid:
            reached = _spread(reached, before.grid, look.grid)
        reached = 0.5 * reached + 0.5 * look.seen(reached)[:, 0]
        before = look
    return torch.unflatten(reached[:, before.num_prefix :], -1, before.grid)


def parse_query(text: str) -> Query:
    """ "cls", "mean" or "ROW,COLUMN"; UserError for anything else."""
    if text in ("cls", "mean"):
        return "cls" if text == "cls" else "mean"
    row, comma, column = text.partition(",")
    if not (comma and row.strip().isdecimal() and column.strip().isdecimal()):
        raise UserError(f"no query {text!r}: expected cls, mean, or ROW,COLUMN of a cell, such as 3,7")
    return int(row), int(column)


def _looks(backbone: Backbone, images: Tensor, blocks: Sequence[nn.Module], *, merge: bool) -> list[Look]:
    """What each of the blocks attends to, in the order in which they run."""
    looks: list[Look] = []

    def keep(block: Any, inputs: tuple[Any, ...]) -> None:
        look = block.look(*inputs)
        looks.append(look.merged() if merge else look)

    hooks = [block.register_forward_pre_hook(keep) for block in blocks]
    try:
        backbone.tokens(images)
    finally:
        for hook in hooks:
            hook.remove()
    return looks


def _asking(look: Look, images: Tensor, query: Query | None) -> Tensor:
    """(B, N), summing up to 1: whose look is asked for."""
    height, width = look.grid
    asking = images.new_zeros(images.shape[0], look.num_prefix + height * width)
    query = query or ("cls" if look.num_prefix else "mean")
    if query == "cls":
        if not look.num_prefix:
            raise UserError("this backbone has no class token: ask for mean, or for a cell as ROW,COLUMN")
        asking[:, 0] = 1
    elif query == "mean":
        asking[:, look.num_prefix :] = 1 / (height * width)
    else:
        row, column = query
        if not (0 <= row < height and 0 <= column < width):
            raise UserError(f"no cell {row},{column}: the layer has {height} rows and {width} columns")
        asking[:, look.num_prefix + row * width + column] = 1
    return asking


def _spread(reached: Tensor, grid: Sequence[int], finer: Sequence[int]) -> Tensor:
    """(B, h * w) of merged cells -> (B, h' * w'): in equal parts to those that they were made of, at most four."""
    down, across = -(-finer[0] // grid[0]), -(-finer[1] // grid[1])
    maps = torch.unflatten(reached, -1, tuple(grid))[:, None]  # (B, 1, h, w)
    inside = F.pad(maps.new_ones(1, 1, *finer), (0, grid[1] * across - finer[1], 0, grid[0] * down - finer[0]))
    parts = F.avg_pool2d(inside, (down, across)) * down * across  # how many there are
    spread = (maps / parts).repeat_interleave(down, dim=2).repeat_interleave(across, dim=3)
    return spread[:, 0, : finer[0], : finer[1]].flatten(1)

"""Hidden states of transformers' networks as maps: how they lie in memory is measured, not read from a config."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitdense.backbones.probing import Size
from vitdense.errors import UserError


class Layout(Protocol):
    """How one state of a network lies in memory."""

    @property
    def stride(self) -> int:
        """Pixels from one patch to the next."""

    def patches(self, state: Tensor, height: int) -> Tensor:
        """A state of padded pictures of this height -> (B, h, w, C)."""

    def prefix(self, state: Tensor) -> Tensor:
        """A state -> tokens (B, P, C) that belong to no place."""


@dataclass(frozen=True)
class MapLayout:
    """A map; `axes` bring it to (B, h, w, C)."""

    axes: tuple[int, int, int, int]
    stride: int

    def patches(self, state: Tensor, height: int) -> Tensor:
        """(B, C, h, w) or (B, h, w, C) -> (B, h, w, C)."""
        return state.permute(self.axes)

    def prefix(self, state: Tensor) -> Tensor:
        """None: (B, 0, C)."""
        return self.patches(state, 0)[:, 0, :0]


@dataclass(frozen=True)
class TokenLayout:
    """Tokens in rows, with `lead` others before and `tail` others after them."""

    lead: int
    tail: int
    stride: int

    def patches(self, state: Tensor, height: int) -> Tensor:
        """(B, lead + h * w + tail, C) -> (B, h, w, C)."""
        rows = -(-height // self.stride)
        return state[:, self.lead : state.shape[1] - self.tail].reshape(state.shape[0], rows, -1, state.shape[2])

    def prefix(self, state: Tensor) -> Tensor:
        """(B, lead + h * w + tail, C) -> (B, lead + tail, C)."""
        return torch.cat([state[:, : self.lead], state[:, state.shape[1] - self.tail :]], dim=1)


def touched_pictures(in_channels: int, size: Size) -> Tensor:
    """(4, in_channels, H, W): black, and with one white pixel at the top left, the top right and the bottom right."""
    images = torch.zeros(4, in_channels, *size)
    for i, (row, column) in enumerate(((0, 0), (0, -1), (-1, -1)), start=1):
        images[i, :, row, column] = 1.0
    return images


def lay_out(name: str, states: list[Tensor], size: Size) -> list[Layout]:
    """The layout of each state of `touched_pictures`.

    The first state of a plain network is its embedding, in which a pixel changes its own token only: that shows where
    the patches begin and end, and that they stand in rows.
    """
    if any(state.shape[0] != 4 for state in states):
        raise UserError(f"{name} mixes the pictures of a batch: {tuple(states[0].shape)} for 4 pictures")
    lead = tail = 0
    first = states[0]
    if first.ndim == 3 and {state.shape[1:2] for state in states} == {first.shape[1:2]}:
        corners = [_changed(first, i) for i in (1, 2, 3)]
        if not all(corners):
            raise UserError(f"{name}: no token answers to the corners of a picture of {size}")
        lead, tail = corners[0][0], first.shape[1] - 1 - corners[2][-1]
        columns = size[1] // _stride_of_tokens(name, first.shape[1] - lead - tail, size)
        if corners[1][-1] != lead + columns - 1:
            raise UserError(f"{name} has patches that don't stand in rows: {corners} for the corners of {size}")
    return [_layout(name, state, size, lead, tail) for state in states]


def _layout(name: str, state: Tensor, size: Size, lead: int, tail: int) -> Layout:
    if state.ndim == 3:
        return TokenLayout(lead, tail, _stride_of_tokens(name, state.shape[1] - lead - tail, size))
    for axes in ((0, 2, 3, 1), (0, 1, 2, 3)):
        height, width = (state.shape[axis] for axis in axes[1:3])
        if size[0] % height == 0 and size[0] // height * width == size[1]:
            return MapLayout(axes, size[0] // height)
    raise UserError(f"{name} gives {tuple(state.shape)} for a picture of {size}: not a map of one whole stride")


def _stride_of_tokens(name: str, cells: int, size: Size) -> int:
    stride: int = round((size[0] * size[1] / max(cells, 1)) ** 0.5)
    if not stride or (size[0] // stride) * (size[1] // stride) != cells:
        raise UserError(f"{name} gives {cells} patches for a picture of {size}: not a map of one whole stride")
    return stride


def _changed(state: Tensor, picture: int) -> list[int]:
    """The tokens in which one picture differs from the first."""
    return [int(i) for i in (state[picture] - state[0]).abs().amax(-1).nonzero()[:, 0]]

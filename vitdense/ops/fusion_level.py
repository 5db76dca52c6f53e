"""A level of a fusion convolution that is resized last: the taps' products at its own size, then resized and added."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from vitdense.ops.fusion_axes import BLOCK, Axis

WORTH = 0.75
"""A map is resized last where that takes at most this share of the products: short ones run slower than long ones."""

BUDGET = {"cpu": 2**21, "cuda": 2**28}
"""How many numbers may stand between the taps' products and their sum: a CPU's cache holds about as many."""


@dataclass(frozen=True)
class Level:
    """One map's axes, its channels among those of the weight, and whether it is resized last."""

    rows: Axis
    columns: Axis
    channels: slice
    last: bool

    @classmethod
    def plan(cls, rows: Axis, columns: Axis, channels: slice) -> "Level":
        """Counts the products of both ways for one output channel."""
        taps, width = rows.kernel * columns.kernel, channels.stop - channels.start
        first = taps * width * rows.out * columns.out
        last = taps * width * rows.count * columns.count
        last += rows.count * rows.kernel * columns.products(BLOCK) + columns.out * rows.products(BLOCK)
        return cls(rows, columns, channels, last <= WORTH * first)

    @property
    def taps(self) -> tuple[int, int]:
        """(across, down): how the taps' products are laid out."""
        return self.columns.kernel, self.rows.kernel

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w)."""
        return self.rows.count, self.columns.count

    @property
    def resized(self) -> tuple[int, int]:
        """The size that all maps are joined at."""
        return self.rows.resized, self.columns.resized

    @property
    def out(self) -> tuple[int, int]:
        """(H', W')."""
        return self.rows.out, self.columns.out


class Shares:
    """How a level's products add up to outputs, as blocks of both axes: made for each call, kept by none."""

    def __init__(self, level: Level, like: Tensor) -> None:
        block = BLOCK if like.device.type == "cpu" else None
        self.columns = list(level.columns.blocks(like, block))
        self.rows = [
            (out, slice(below.start * level.rows.kernel, below.stop * level.rows.kernel), shares.mT.flatten(1))
            for out, below, shares in level.rows.blocks(like, block)
        ]


class Room:
    """Memory that chunk after chunk is written to."""

    def __init__(self, like: Tensor, numbers: int) -> None:
        self.numbers = like.new_empty(numbers)

    def shaped(self, *shape: int) -> Tensor:
        """The first part of it; whatever is there."""
        return self.numbers[: prod(shape)].view(shape)


def add_level(out: Tensor, level: Level, weight: Tensor, maps: Tensor) -> None:
    """out: (B, O, H', W') in full precision += the convolution of maps: (B, C, h, w), resized."""
    shares, (height, width), (across, down) = Shares(level, out), level.cells, level.taps
    products = rows = None
    for chosen, taps in _chunks(level, weight):
        count = chosen.stop - chosen.start
        products = products or Room(weight, len(taps) * height * width)
        rows = rows or Room(out, count * height * down * level.out[1])
        for picture, into in zip(maps, out, strict=True):
            shape = (across, down, count * height, width)
            found = torch.mm(taps, picture.flatten(1), out=products.shaped(len(taps), height * width))
            wide = rows.shaped(count * height, down, level.out[1])
            _resize_columns(wide, shares, found.view(shape).to(out.dtype))
            for place, below, share in shares.rows:
                read = wide.view(count, height * down, -1)[:, below]
                into[chosen, place].baddbmm_(share.expand(count, -1, -1), read)


def _resize_columns(wide: Tensor, shares: Shares, products: Tensor) -> None:
    """products: (across, down, O * h, w) -> wide: (O * h, down, W')."""
    for place, below, share in shares.columns:  # share: (W' of them, across, w of them)
        for down in range(products.shape[1]):
            into = wide[:, down, place]
            torch.mm(products[0, down, :, below], share[:, 0].t(), out=into)
            for across in range(1, len(products)):
                into.addmm_(products[across, down, :, below], share[:, across].t())


class Gradients:
    """What arrives at a level's map, (B, C, h, w), and at its part of the weight, (O, C, k, k), where it is needed."""

    def __init__(self, level: Level, above: Tensor, maps: Tensor, *, of_maps: bool, of_weight: bool) -> None:
        precise = torch.promote_types(maps.dtype, torch.float32)
        self.of_maps = maps.new_zeros(maps.shape, dtype=precise) if of_maps else None
        shape = (above.shape[1], maps.shape[1], level.rows.kernel, level.columns.kernel)
        self.of_weight = maps.new_empty(shape, dtype=precise) if of_weight else None

    def pull(self, level: Level, above: Tensor, weight: Tensor, maps: Tensor) -> "Gradients":
        """above: (B, O, H', W'), what arrives at the output."""
        like = above.new_empty((), dtype=torch.promote_types(above.dtype, torch.float32))
        shares, (height, width), (across, down) = Shares(level, like), level.cells, level.taps
        products = rows = None
        for chosen, taps in _chunks(level, weight):
            count = chosen.stop - chosen.start
            products = products or Room(like, len(taps) * height * width)
            rows = rows or Room(like, count * height * down * level.out[1])
            of_taps = torch.zeros_like(taps, dtype=like.dtype) if self.of_weight is not None else None
            for index, picture in enumerate(maps):
                wide = rows.shaped(count, height * down, level.out[1]).zero_()
                arrived = above[index, chosen].to(like.dtype)
                for place, below, share in shares.rows:
                    wide[:, below].baddbmm_(share.t().expand(count, -1, -1), arrived[:, place])
                found = products.shaped(across, down, count * height, width).zero_()
                _pull_columns(found, shares, wide.view(count * height, down, -1))
                flat = found.view(len(taps), -1).to(weight.dtype)
                if self.of_maps is not None:
                    accumulate(self.of_maps[index].flatten(1), taps.t(), flat)
                if of_taps is not None:
                    accumulate(of_taps, flat, picture.flatten(1).t())
            if self.of_weight is not None and of_taps is not None:
                self.of_weight[chosen] = of_taps.view(across, down, count, -1).permute(2, 3, 1, 0)
        return self


def _pull_columns(products: Tensor, shares: Shares, wide: Tensor) -> None:
    """wide: (O * h, down, W') -> products: (across, down, O * h, w), added."""
    for place, below, share in shares.columns:
        for down in range(products.shape[1]):
            for across in range(len(products)):
                products[across, down, :, below].addmm_(wide[:, down, place], share[:, across])


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total: (N, M) += a: (N, K) times b: (K, M), halves into float32."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a.mm(b)


def _chunks(level: Level, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some output channels at a time, the first the most, and their taps: (across * down * O of them, C)."""
    at_once = max(1, BUDGET[weight.device.type] // (prod(level.taps) * prod(level.cells)))
    pieces = -(-weight.shape[0] // at_once)
    at_once = -(-weight.shape[0] // pieces)
    edges = [*range(0, weight.shape[0], at_once), weight.shape[0]]
    for first, end in pairwise(edges):
        taps = weight[first:end, level.channels].permute(3, 2, 0, 1)  # (across, down, O, C)
        yield slice(first, end), taps.reshape(-1, taps.shape[-1])

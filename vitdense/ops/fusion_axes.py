"""Bilinear resizing and a kernel's shifts along one axis as small matrices, and the products a convolution takes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 32
"""Cells of an axis that one product interpolates on a CPU: few, since each reads only the cells below it."""


@dataclass(frozen=True)
class Axis:
    """`count` cells resized to `resized`, zeros beyond them, read by `kernel` taps with `padding` -> `out` cells."""

    count: int
    resized: int
    kernel: int
    padding: int
    align_corners: bool

    @property
    def out(self) -> int:
        """Cells that come out."""
        return self.resized + 2 * self.padding - self.kernel + 1

    def resizing(self, like: Tensor) -> Tensor:
        """(resized, count): what torch's own interpolation makes of each cell, in `like`'s precision and place."""
        unit = torch.eye(self.count, dtype=like.dtype, device=like.device)[None, None]
        rows = F.interpolate(unit, size=(self.resized, self.count), mode="bilinear", align_corners=self.align_corners)
        return rows[0, 0]

    def blocks(self, like: Tensor, cells: int | None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Some of the cells that come out, the cells they are made of, and the shares (out, kernel, count) of those.

        About `cells` at a time; all at once without.
        """
        beyond = F.pad(self.resizing(like), (0, 0, self.padding, self.padding))
        shares = beyond.unfold(0, self.kernel, 1).transpose(1, 2)  # (out, kernel, count)
        pieces = 1 if cells is None else max(1, round(self.out / cells))
        edges = [self.out * i // pieces for i in range(pieces + 1)]
        for first, end in pairwise(edges):
            below = self._below(first, end)
            yield slice(first, end), below, shares[first:end, :, below]

    def products(self, cells: int) -> int:
        """Products for one row of cells that come out, in blocks of `cells`."""
        return self.kernel * self.out * min(self.count, cells * self.count // self.resized + 4)

    def _below(self, first: int, end: int) -> slice:
        """The cells that outputs `first` to `end` are made of, and one more on each side, which roundings may move."""
        low, high = self._place(first - self.padding), self._place(end - 2 - self.padding + self.kernel)
        return slice(max(int(low) - 1, 0), min(int(high) + 3, self.count))

    def _place(self, index: int) -> float:
        index = min(max(index, 0), self.resized - 1)
        if self.align_corners:
            return index * (self.count - 1) / max(self.resized - 1, 1)
        return max((index + 0.5) * self.count / self.resized - 0.5, 0.0)

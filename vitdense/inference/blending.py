"""How much each pixel of a sliding window counts, and the weighted mean of windows that overlap."""

from typing import Literal

import torch
from torch import Tensor

Blend = Literal["gaussian", "cosine", "uniform"]
Place = tuple[int, int]


def blend_weights(blend: Blend, size: tuple[int, ...]) -> Tensor:
    """(h, w) or (d, h, w): how much each pixel of a window counts, 1 in the middle and never below a thousandth."""
    weights = torch.ones(())
    for length in size:
        weights = weights[..., None] * _side(blend, length)
    return weights.clamp_min(1e-3)


def _side(blend: Blend, length: int) -> Tensor:
    place = (torch.arange(length, dtype=torch.float32) + 0.5) / length  # in (0, 1)
    if blend == "gaussian":
        return torch.exp(-0.5 * ((place - 0.5) / 0.125).square())
    if blend == "cosine":
        return torch.sin(torch.pi * place).square()
    return torch.ones(length)


class Canvas:
    """Sums weighted windows over an area of a picture: `size` (H, W) pixels whose first one lies at `place` of it."""

    def __init__(self, size: tuple[int, int], weights: Tensor, place: Place = (0, 0)) -> None:
        self.size, self.weights, self.place = size, weights, place
        self.covered = torch.zeros(size, device=weights.device)
        self.total: Tensor | None = None

    def add(self, maps: Tensor, place: Place) -> None:
        """maps: (B, K, h, w) of the window at (top, left) of the picture; what lies outside of the area is left out."""
        if self.total is None:
            self.total = maps.new_zeros(*maps.shape[:2], *self.size)
        (rows, columns), (own_rows, own_columns) = self.shared(place)
        weights = self.weights[own_rows, own_columns]
        self.total[..., rows, columns].addcmul_(maps[..., own_rows, own_columns], weights.to(maps.dtype))
        self.covered[rows, columns] += weights

    def shared(self, place: Place) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns that the area shares with the window at (top, left): in the area, and in the window."""
        height, width = self.weights.shape
        down = _shared(self.place[0], self.size[0], place[0], height)
        across = _shared(self.place[1], self.size[1], place[1], width)
        return (down[0], across[0]), (down[1], across[1])

    def mean(self, rows: int) -> Tensor | None:
        """(B, K, rows, W): the first rows' weighted means, in place of their sums; None where no window has come."""
        if self.total is None:
            return None
        # What no window covers stays 0; the least weight is far above.
        return self.total[..., :rows, :].div_(self.covered[:rows].clamp_min(1e-6))

    def move_down(self, rows: int) -> None:
        """Forget the first rows, and go on as many below."""
        self.place = (self.place[0] + rows, self.place[1])
        planes = () if self.total is None else self.total.flatten(0, 1)
        for plane in (*planes, self.covered):  # one after the other: a copy of all would be as large as all
            plane[: self.size[0] - rows] = plane[rows:].clone()
            plane[self.size[0] - rows :] = 0


def _shared(start: int, length: int, window_start: int, window_length: int) -> tuple[slice, slice]:
    first, end = max(start, window_start), min(start + length, window_start + window_length)
    end = max(first, end)
    return slice(first - start, end - start), slice(first - window_start, end - window_start)

"""Attention of one layer as a person asks for it: where given tokens look, over the whole picture."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from vitdense.layers.position import Grid
from vitdense.layers.tiles import Tiling, merge, partition


class Look(ABC):
    """One layer's attention: N tokens, `num_prefix` of them before the h * w cells of `grid`."""

    grid: Grid
    num_prefix: int

    @abstractmethod
    def seen(self, asking: Tensor) -> Tensor:
        """asking: (B, N), how much each token's look counts -> (B, heads, N): how much each token is looked at."""

    @abstractmethod
    def merged(self) -> "Look":
        """The mean of all heads as one."""


@dataclass(frozen=True)
class GlobalLook(Look):
    """Every token looks at every token: weights (B, heads, N, N), rows of those who look."""

    weights: Tensor
    grid: Grid

    @property
    def num_prefix(self) -> int:  # type: ignore[override]
        """Tokens that are no cells."""
        return self.weights.shape[-1] - self.grid[0] * self.grid[1]

    def seen(self, asking: Tensor) -> Tensor:
        """asking: (B, N) -> (B, heads, N)."""
        return torch.einsum("bq,bhqk->bhk", asking, self.weights)

    def merged(self) -> "GlobalLook":
        """The mean of all heads as one."""
        return GlobalLook(self.weights.mean(dim=1, keepdim=True), self.grid)


@dataclass(frozen=True)
class WindowLook(Look):
    """Cells look at those of their window: weights (B * windows, heads, n, n), windows as `tiling` lays them out.

    What goes to places beyond the map's edge is lost.
    """

    weights: Tensor
    tiling: Tiling
    grid: Grid
    num_prefix: int = 0

    def seen(self, asking: Tensor) -> Tensor:
        """asking: (B, h * w) -> (B, heads, h * w)."""
        laid_out = self.tiling.lay_out(asking.view(-1, *self.grid, 1))  # (B, H, W, 1)
        asked = partition(laid_out, self.tiling.window)  # (B * windows, n, 1)
        found = torch.einsum("wqo,whqk->wkh", asked, self.weights)  # (B * windows, n, heads)
        maps = merge(found, self.tiling.window, laid_out.shape[1], laid_out.shape[2])
        return self.tiling.take_back(maps, *self.grid).flatten(1, 2).mT  # (B, heads, h * w)

    def merged(self) -> "WindowLook":
        """The mean of all heads as one."""
        return WindowLook(self.weights.mean(dim=1, keepdim=True), self.tiling, self.grid)

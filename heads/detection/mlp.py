"""A small stack of linear layers, as detectors put behind their queries; named as in transformers."""

from itertools import pairwise

from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, channels: int, hidden: int, out_channels: int, *, layers: int) -> None:
        super().__init__()
        sizes = [channels, *[hidden] * (layers - 1), out_channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, queries: Tensor) -> Tensor:
        """queries: (..., C) -> (..., C_out)."""
        for layer in self.layers[:-1]:
            queries = layer(queries).relu()
        out: Tensor = self.layers[-1](queries)
        return out

"""How much each pixel of a sliding window counts."""

from typing import Literal

import torch
from torch import Tensor

Blend = Literal["gaussian", "cosine", "uniform"]


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

"""Boundary loss: 1 - F1 of soft class outlines (Bokhovkin and Burnaev 2019, https://arxiv.org/abs/1905.07852)."""

from typing import ClassVar

import torch
from pydantic import PositiveInt, field_validator
from torch import Tensor
from torch.nn import functional as F

from heads.losses.config import LOSSES, LossConfig
from heads.losses.pixels import Pixels

EPSILON = 1e-7


@LOSSES.register("boundary")
class BoundaryConfig(LossConfig):
    """The mean over the outlines that the truth holds, by picture and class. Outlines are found within `width` pixels,
    and may lie `tolerance` pixels across from each other; both odd. Takes the memory of 13.1
    full-size tensors.
    """

    key: ClassVar[str] = "boundary"

    width: PositiveInt = 3
    tolerance: PositiveInt = 5

    @field_validator("width", "tolerance")
    @classmethod
    def _is_odd(cls, given: int) -> int:
        if given % 2 == 0:
            raise ValueError("must be odd")
        return given

    def loss(self, pixels: Pixels) -> Tensor:
        """() in float32 or better."""
        probabilities = pixels.probabilities
        labelled = pixels.labelled[:, None].to(probabilities.dtype)
        truth = torch.zeros_like(probabilities).scatter_(1, pixels.classes[:, None], 1.0)
        true, found = self._outline(truth, labelled), self._outline(probabilities, labelled)
        precision = (found * _widened(true, self.tolerance)).sum((2, 3)) / (found.sum((2, 3)) + EPSILON)  # (B, K)
        recall = (true * _widened(found, self.tolerance)).sum((2, 3)) / (true.sum((2, 3)) + EPSILON)
        lacking = 1 - 2 * precision * recall / (precision + recall + EPSILON)
        present = (true.sum((2, 3)) > 0).to(lacking.dtype)
        return (lacking * present).sum() / present.sum().clamp_min(1)

    def _outline(self, areas: Tensor, labelled: Tensor) -> Tensor:
        """areas (B, K, H, W) -> their inner outlines; what has no label is neither inside nor outside."""
        outside = (1 - areas) * labelled
        return (_widened(outside, self.width) - outside) * labelled


def _widened(maps: Tensor, width: int) -> Tensor:
    return F.max_pool2d(maps, width, stride=1, padding=width // 2)

"""Logits and masks as losses see them: at the head's stride, and at full size where a loss can't do without."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import IGNORE


@dataclass(frozen=True)
class Pixels:
    """logits (B, K, h, w), masks (B, H, W) int64; what several losses need of them is made once.

    `class_weights` (K,) and `label_smoothing` are the head's, and belong to its cross entropies.
    """

    logits: Tensor
    masks: Tensor
    align_corners: bool = False
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0

    @cached_property
    def upsampled(self) -> Tensor:
        """The logits at full size, (B, K, H, W), in float32 or better."""
        precise = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        size = self.masks.shape[-2:]
        if precise.shape[-2:] == size:
            return precise
        return F.interpolate(precise, size, mode="bilinear", align_corners=self.align_corners)

    @cached_property
    def probabilities(self) -> Tensor:
        """Of the classes at full size, (B, K, H, W)."""
        return self.upsampled.softmax(dim=1)

    @cached_property
    def labelled(self) -> Tensor:
        """Which pixels have a label, (B, H, W)."""
        return self.masks != IGNORE

    @cached_property
    def classes(self) -> Tensor:
        """The masks, (B, H, W), with class 0 where there is no label."""
        return self.masks.clamp_min(0)

    def of_truth(self, values: Tensor) -> Tensor:
        """values (B, K, H, W) -> those of each pixel's own class, (B, H, W)."""
        return values.gather(1, self.classes[:, None])[:, 0]

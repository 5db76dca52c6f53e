"""Cross entropy, over all pixels or over the hard ones (OHEM, Shrivastava et al. 2016, https://arxiv.org/abs/1604.03540)."""

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from heads.losses.config import LOSSES, LossConfig
from heads.losses.pixels import Pixels
from vitdense.contracts import IGNORE
from vitdense.ops.upsampled_cross_entropy import upsampled_cross_entropy


@LOSSES.register("cross_entropy")
class CrossEntropyConfig(LossConfig):
    """The mean over labelled pixels, with the head's class weights and label smoothing; no full-size tensor is held."""

    key: ClassVar[str] = "ce"

    def loss(self, pixels: Pixels) -> Tensor:
        """() in float32 or better."""
        return upsampled_cross_entropy(
            pixels.logits,
            pixels.masks,
            align_corners=pixels.align_corners,
            weights=pixels.class_weights,
            label_smoothing=pixels.label_smoothing,
        )


@LOSSES.register("ohem_cross_entropy")
class HardCrossEntropyConfig(LossConfig):
    """The mean over hard pixels, as mmsegmentation's OhemCrossEntropy: those whose own class has a probability below
    `threshold`, and of them at least about `min_kept`, the hardest. Takes the memory of 3.2 full-size tensors.
    """

    key: ClassVar[str] = "ohem"

    threshold: float = Field(default=0.7, gt=0.0, le=1.0)
    min_kept: PositiveInt = 100_000

    def loss(self, pixels: Pixels) -> Tensor:
        """() in float32 or better."""
        logits = pixels.upsampled
        weights = None if pixels.class_weights is None else pixels.class_weights.to(logits.dtype)
        losses = F.cross_entropy(
            logits,
            pixels.masks,
            weight=weights,
            ignore_index=IGNORE,
            reduction="none",
            label_smoothing=pixels.label_smoothing,
        )
        with torch.no_grad():
            certain = pixels.of_truth(logits) - logits.logsumexp(dim=1)  # (B, H, W)
            certain = certain.exp().masked_fill(~pixels.labelled, torch.inf)
            rank = pixels.labelled.sum().sub(1).clamp(0, self.min_kept)
            hardest = certain.flatten().sort().values
            limit = hardest.gather(0, rank[None]).clamp_min(self.threshold)
            hard = pixels.labelled & (certain < limit)
        return torch.where(hard, losses, 0).sum() / hard.sum().clamp_min(1)

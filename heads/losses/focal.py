"""Focal loss: each class against all others, easy pixels counting less (Lin et al. 2017, https://arxiv.org/abs/1708.02002)."""

from typing import ClassVar

from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from heads.losses.config import LOSSES, LossConfig
from heads.losses.pixels import Pixels


@LOSSES.register("focal")
class FocalConfig(LossConfig):
    """The mean over labelled pixels and classes, with sigmoids; `alpha` is the share of the own class, 1 - alpha that
    of the others: as segmentation-models-pytorch's FocalLoss. Takes the memory of 9.9 full-size tensors.
    """

    key: ClassVar[str] = "focal"

    gamma: NonNegativeFloat = 2.0
    alpha: float | None = Field(default=None, ge=0.0, le=1.0)

    def loss(self, pixels: Pixels) -> Tensor:
        """() in float32 or better."""
        logits = pixels.upsampled
        own, others = (1.0, 1.0) if self.alpha is None else (self.alpha, 1 - self.alpha)
        of_others = others * self._binary(-logits)
        of_own = own * self._binary(pixels.of_truth(logits))
        losses = of_others.scatter(1, pixels.classes[:, None], of_own[:, None]).sum(dim=1)  # (B, H, W)
        count = pixels.labelled.sum().clamp_min(1) * logits.shape[1]
        return (losses * pixels.labelled).sum() / count

    def _binary(self, towards: Tensor) -> Tensor:
        """towards: logits of what is true; by logarithms, since a power has no finite slope at 0."""
        return -F.logsigmoid(towards) * (self.gamma * F.logsigmoid(-towards)).exp()

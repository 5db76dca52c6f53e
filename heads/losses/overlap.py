"""Losses of overlapping areas: Dice (Milletari et al. 2016, https://arxiv.org/abs/1606.04797) and Tversky (Salehi et
al. 2017, https://arxiv.org/abs/1706.05721; focal: Abraham and Khan 2018, https://arxiv.org/abs/1810.07842)."""

from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from heads.losses.config import LOSSES, LossConfig
from heads.losses.pixels import Pixels

EPSILON = 1e-7


@LOSSES.register("dice")
class DiceConfig(LossConfig):
    """1 - Dice of each class over the whole batch, averaged over all classes, those without truth counting 0: as
    segmentation-models-pytorch's DiceLoss. Takes the memory of 3.9 full-size tensors.
    """

    key: ClassVar[str] = "dice"

    smooth: NonNegativeFloat = 0.0

    def loss(self, pixels: Pixels) -> Tensor:
        """() in float32 or better."""
        return _lacking_overlap(pixels, 0.5, 0.5, self.smooth).mean()


@LOSSES.register("tversky")
class TverskyConfig(LossConfig):
    """Dice with `alpha` for what is wrongly found and `beta` for what is missed, the mean to the power of `gamma`: as
    segmentation-models-pytorch's TverskyLoss. Takes the memory of 3.9 full-size tensors.
    """

    key: ClassVar[str] = "tversky"

    alpha: NonNegativeFloat = 0.5
    beta: NonNegativeFloat = 0.5
    gamma: PositiveFloat = 1.0
    smooth: NonNegativeFloat = 0.0

    def loss(self, pixels: Pixels) -> Tensor:
        """() in float32 or better."""
        mean = _lacking_overlap(pixels, self.alpha, self.beta, self.smooth).mean()
        # A root has no finite slope at 0, where there is nothing to learn either.
        return torch.where(mean > 0, torch.where(mean > 0, mean, 1) ** self.gamma, 0)


def _lacking_overlap(pixels: Pixels, alpha: float, beta: float, smooth: float) -> Tensor:
    """1 - Tversky's index of each class, 0 for those without truth: (K,)."""
    probabilities, labelled = pixels.probabilities, pixels.labelled
    num_classes = probabilities.shape[1]
    own = pixels.of_truth(probabilities) * labelled
    classes = pixels.classes.flatten()
    hits = own.new_zeros(num_classes).index_add(0, classes, own.flatten())
    found = torch.einsum("bkhw,bhw->k", probabilities, labelled.to(own.dtype))
    truth = own.new_zeros(num_classes).index_add(0, classes, labelled.flatten().to(own.dtype))
    index = (hits + smooth) / (hits + alpha * (found - hits) + beta * (truth - hits) + smooth).clamp_min(EPSILON)
    return (1 - index) * (truth > 0)

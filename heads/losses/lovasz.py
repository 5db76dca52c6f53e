"""Lovasz-softmax: a smooth stand-in for the mean IoU itself (Berman et al. 2018, https://arxiv.org/abs/1705.08790)."""

from typing import ClassVar

import torch
from torch import Tensor

from heads.losses.config import LOSSES, LossConfig
from heads.losses.pixels import Pixels


@LOSSES.register("lovasz")
class LovaszConfig(LossConfig):
    """The mean over the classes that the batch's truth holds, as the authors' code and segmentation-models-pytorch's
    LovaszLoss. Sorts all pixels for each of them, and takes the memory of 7.1 full-size tensors.
    """

    key: ClassVar[str] = "lovasz"

    def loss(self, pixels: Pixels) -> Tensor:
        """() in float32 or better."""
        probabilities = pixels.probabilities.movedim(1, -1)[pixels.labelled]  # (N, K)
        labels = pixels.masks[pixels.labelled]  # (N,)
        present = torch.unique(labels).tolist()
        if not present:
            return probabilities.sum()  # of nothing: 0, and connected to the logits
        return torch.stack([_of_class(probabilities[:, index], labels == index) for index in present]).mean()


def _of_class(probabilities: Tensor, truth: Tensor) -> Tensor:
    """probabilities (N,), truth (N,) bool -> (): the errors, largest first, weighted by what each costs in IoU."""
    errors, order = (truth.to(probabilities.dtype) - probabilities).abs().sort(descending=True)
    sorted_truth = truth[order]
    missed = sorted_truth.sum() - sorted_truth.cumsum(0)
    union = sorted_truth.sum() + (~sorted_truth).cumsum(0)
    lost = 1 - missed.to(errors.dtype) / union.to(errors.dtype)
    return errors.dot(torch.diff(lost, prepend=lost.new_zeros(1)))

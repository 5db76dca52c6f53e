"""Lovasz-softmax: a smooth stand-in for the mean IoU itself (Berman et al. 2018, https://arxiv.org/abs/1705.08790)."""

from typing import ClassVar

import torch
from torch import Tensor

from heads.losses.config import LOSSES, LossConfig
from heads.losses.pixels import Pixels


@LOSSES.register("lovasz")
class LovaszConfig(LossConfig):
    """The mean over the classes that the batch's truth holds, as the authors' code and segmentation-models-pytorch's
    LovaszLoss. Sorts all pixels for each of them, and takes the memory of 6.6 full-size tensors.
    """

    key: ClassVar[str] = "lovasz"

    def loss(self, pixels: Pixels) -> Tensor:
        """() in float32 or better."""
        probabilities = pixels.probabilities.transpose(0, 1).flatten(1)  # (K, N)
        masks, labelled = pixels.masks.flatten(), pixels.labelled.flatten()  # (N,)
        if torch.compiler.is_compiling():  # what the masks hold is not known while a graph is made
            classes = list(range(len(probabilities)))
        else:
            classes = torch.unique(pixels.classes).tolist()
        truths = [masks == index for index in classes]
        losses = [_of_class(probabilities[i], truth, labelled) for i, truth in zip(classes, truths, strict=True)]
        present = torch.stack([truth.any() for truth in truths])
        return (torch.stack(losses) * present).sum() / present.sum().clamp_min(1)


def _of_class(probabilities: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
    """(N,) each -> (): the errors, largest first, weighted by what each costs in IoU; 0 for pixels without a label."""
    errors, order = ((truth.to(probabilities.dtype) - probabilities).abs() * labelled).sort(descending=True)
    hits, others = truth[order], (labelled & ~truth)[order]
    missed = hits.sum() - hits.cumsum(0)
    union = (hits.sum() + others.cumsum(0)).clamp_min(1)
    lost = 1 - missed.to(errors.dtype) / union.to(errors.dtype)
    return errors.dot(torch.diff(lost, prepend=lost.new_zeros(1)))

"""Dice and Boundary IoU (Cheng et al. 2021, https://arxiv.org/abs/2103.16562) by class, from exact counts of pixels."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import IGNORE, METRICS, Batch, Metric, MetricConfig, Predictions, Samples
from vitdense.errors import UserError


@METRICS.register("dice")
class DiceConfig(MetricConfig):
    """Dice, 2 |A and B| / (|A| + |B|), by class over all pixels of the split."""

    def build(self, samples: Samples) -> "Dice":
        """A metric for this data set's classes."""
        return Dice(_classes(samples, "dice"))


@METRICS.register("boundary_iou")
class BoundaryIoUConfig(MetricConfig):
    """IoU of the pixels no farther from a class's border than `dilation_ratio` of the picture's diagonal."""

    dilation_ratio: float = Field(default=0.02, gt=0, lt=1)

    def build(self, samples: Samples) -> "BoundaryIoU":
        """A metric for this data set's classes."""
        return BoundaryIoU(_classes(samples, "boundary_iou"), dilation_ratio=self.dilation_ratio)


class Overlap(Metric):
    """Counts, for each class, of pixels that truth and prediction share, and of each alone."""

    name: str

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.counts = torch.zeros(3, len(classes), dtype=torch.int64)  # shared, in the truth, in the prediction

    def count(self, mask: Tensor, prediction: Tensor) -> Tensor:
        """mask, prediction: (H, W) class indices, IGNORE in the mask where unlabelled -> (3, K) counts of pixels."""
        raise NotImplementedError

    def scores(self, shared: Tensor, truth: Tensor, prediction: Tensor) -> Tensor:
        """Counts (K,) in fp64 -> (K,), NaN where a class is in neither."""
        raise NotImplementedError

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """predictions: one (H, W) tensor of class indices for each of the masks (H, W) of `batch`."""
        for index, (prediction, mask) in enumerate(zip(predictions, batch["masks"], strict=True)):
            if prediction.shape != mask.shape:
                name = batch["ids"][index] if "ids" in batch else f"picture {index}"
                raise UserError(
                    f"{name}: the prediction is {tuple(prediction.shape)} and the mask {tuple(mask.shape)} (H, W)"
                )
            counts = self.count(mask.to(prediction.device).int(), prediction.int())
            self.counts = self.counts.to(counts.device) + counts

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by their sum over all processes."""
        self.counts = sum_over_processes(self.counts)

    def compute(self) -> dict[str, float]:
        """The mean over the classes that occur in truth or prediction, in 0..1."""
        return {f"m{self.name}": self._by_class().nanmean().item()}

    def details(self) -> Mapping[str, Any]:
        """Columns by class, NaN where absent."""
        return {"classes": list(self.classes), self.name: self._by_class().tolist()}

    def _by_class(self) -> Tensor:
        shared, truth, prediction = self.counts.cpu().double()
        return self.scores(shared, truth, prediction)


class Dice(Overlap):
    """Pixels without a label count for nothing, whatever is predicted there."""

    name = "Dice"

    def count(self, mask: Tensor, prediction: Tensor) -> Tensor:
        """mask, prediction: (H, W) -> (3, K)."""
        size, labelled = len(self.classes), mask != IGNORE
        truth, guess = mask[labelled], prediction[labelled]
        known = (guess >= 0) & (guess < size)
        parts = (truth[truth == guess], truth, guess[known])
        return torch.stack([torch.bincount(part, minlength=size) for part in parts])

    def scores(self, shared: Tensor, truth: Tensor, prediction: Tensor) -> Tensor:
        """2 |A and B| / (|A| + |B|)."""
        return 2 * shared / (truth + prediction)


class BoundaryIoU(Overlap):
    """A class's boundary region: its pixels that an erosion by d = round(ratio x diagonal) rounds of 3 x 3 takes away.

    The picture's rim counts as border, as in the authors' code. Pixels without a label belong to no class, and what is
    predicted there is left out before boundaries are taken, so that nothing the truth does not know adds a border of
    the prediction alone.
    """

    name = "BoundaryIoU"

    def __init__(self, classes: tuple[str, ...], *, dilation_ratio: float = 0.02) -> None:
        super().__init__(classes)
        self.dilation_ratio = dilation_ratio

    def count(self, mask: Tensor, prediction: Tensor) -> Tensor:
        """mask, prediction: (H, W) -> (3, K)."""
        height, width = mask.shape
        distance = max(1, round(self.dilation_ratio * (height**2 + width**2) ** 0.5))
        guess = torch.where(mask == IGNORE, IGNORE, prediction)
        counts = self.counts.new_zeros(self.counts.shape, device=mask.device)
        for index in np.unique(torch.stack([mask, guess]).cpu().numpy()).tolist():
            if 0 <= index < len(self.classes):
                one, other = (boundary_region(labels == index, distance) for labels in (mask, guess))
                counts[:, index] = torch.stack([(one & other).sum(), one.sum(), other.sum()])
        return counts

    def scores(self, shared: Tensor, truth: Tensor, prediction: Tensor) -> Tensor:
        """|A and B| / |A or B|."""
        return shared / (truth + prediction - shared)


def boundary_region(inside: Tensor, distance: int) -> Tensor:
    """inside: (H, W) bool -> the pixels of it no more than `distance` (chessboard) from a pixel outside, or the rim."""
    outside = F.pad(~inside, (distance,) * 4, value=True)  # (H + 2d, W + 2d)
    return inside & _any_within(_any_within(outside, distance).T, distance).T


def _any_within(flags: Tensor, distance: int) -> Tensor:
    """flags: (H + 2d, W) bool -> (H, W): whether one of 2d + 1 rows is set, from sums whatever the distance."""
    sums = F.pad(flags.cumsum(dim=0, dtype=torch.int32), (0, 0, 1, 0))  # (H + 2d + 1, W)
    return sums[2 * distance + 1 :] > sums[: -2 * distance - 1]


def _classes(samples: Samples, name: str) -> tuple[str, ...]:
    if not samples.classes:
        raise UserError(f"metric {name!r} needs a data set with classes; for depth take metric: {{name: depth}}")
    return samples.classes

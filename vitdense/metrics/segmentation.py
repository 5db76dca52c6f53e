"""Mean intersection over union, from one confusion matrix of exact counts."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from vitdense.contracts import IGNORE, METRICS, Batch, Metric, MetricConfig, Predictions, Samples
from vitdense.errors import UserError

PIXELS = 2**18
"""Pixels that are counted at a time: as many as a CPU's cache holds."""


@METRICS.register("miou")
class MeanIoUConfig(MetricConfig):
    """`present` averages the classes that occur in truth or prediction; `all` counts absent ones as 0."""

    average: Literal["present", "all"] = "present"

    def build(self, samples: Samples) -> "MeanIoU":
        """A metric for this data set's classes; UserError where it has none."""
        if not samples.classes:
            raise UserError("metric 'miou' needs a data set with classes; for depth take metric: {name: depth}")
        return MeanIoU(samples.classes, average=self.average)


class MeanIoU(Metric):
    """Counts pixel pairs (truth, prediction); a prediction that names no class is wrong wherever the truth has one.

    `present` is the field's usual mean (mmsegmentation); `all` is that of ADE20K's official devkit. Where not one
    pixel has a label, every result is NaN.
    """

    def __init__(self, classes: tuple[str, ...], *, average: Literal["present", "all"] = "present") -> None:
        self.classes = classes
        self.average = average
        size = len(classes)
        self.counts = torch.zeros(size, size + 1, dtype=torch.int64)  # the last column: no class at all

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """predictions: one (H, W) tensor of class indices for each of the masks (H, W) of `batch`."""
        for index, (prediction, mask) in enumerate(zip(predictions, batch["masks"], strict=True)):
            if prediction.shape != mask.shape:
                name = batch["ids"][index] if "ids" in batch else f"picture {index}"
                raise UserError(
                    f"{name}: the prediction is {tuple(prediction.shape)} and the mask {tuple(mask.shape)} (H, W)"
                )
            counts = count_pairs(mask.to(prediction.device), prediction, len(self.classes))
            self.counts = self.counts.to(counts.device) + counts

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by their sum over all processes."""
        self.counts = sum_over_processes(self.counts)

    def compute(self) -> dict[str, float]:
        """mIoU, mAcc (over the classes that the truth holds) and aAcc, each in 0..1."""
        iou, accuracy, pixels, correct = self._by_class()
        return {
            "mIoU": self._mean(iou, pixels),
            "mAcc": self._mean(accuracy, pixels),
            "aAcc": (correct.sum() / pixels.sum()).item(),
        }

    def details(self) -> Mapping[str, Any]:
        """Columns by class: `classes`, `IoU` and `Acc` (NaN where absent), and `pixels` of the truth."""
        iou, accuracy, pixels, _ = self._by_class()
        columns = {"IoU": iou.tolist(), "Acc": accuracy.tolist(), "pixels": pixels.long().tolist()}
        return {"classes": list(self.classes), **columns}

    def _by_class(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """IoU, accuracy, pixels of the truth, correct pixels: (K,) each, in fp64 on the CPU."""
        counts = self.counts.cpu().double()
        correct = counts.diagonal()
        pixels = counts.sum(dim=1)
        union = pixels + counts[:, :-1].sum(dim=0) - correct
        return correct / union, correct / pixels, pixels, correct

    def _mean(self, scores: Tensor, pixels: Tensor) -> float:
        if self.average == "all" and pixels.sum() > 0:
            scores = scores.nan_to_num(nan=0.0)
        return scores.nanmean().item()


def count_pairs(mask: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """mask, prediction: integers of one shape -> (K, K + 1) counts by true and predicted class, int64 on their device.

    Pixels of IGNORE are left out; the last column counts predictions that are no class.
    """
    columns = num_classes + 1
    # A pair is one small number, IGNORE giving a row of its own: nothing is picked out, and int16 is quick to count.
    kind = torch.int16 if columns**2 <= torch.iinfo(torch.int16).max else torch.int32
    counts = torch.zeros(columns**2, dtype=torch.int64, device=mask.device)
    if mask.numel():
        parts = (torch.split(each.reshape(-1), PIXELS) for each in (mask, prediction))
        for truth, guess in zip(*parts, strict=True):
            _check_truth(truth, num_classes)
            pairs = _as_classes(guess, num_classes).to(kind, copy=True)
            pairs.add_(truth.to(kind), alpha=columns).add_(columns)
            counts += torch.bincount(pairs, minlength=columns**2)
    return counts.view(columns, columns)[1:]


def _check_truth(truth: Tensor, num_classes: int) -> None:
    low, high = (each.item() for each in torch.aminmax(truth))
    if low < IGNORE or high >= num_classes:
        wrong = truth[(truth < IGNORE) | (truth >= num_classes)][0].item()
        raise UserError(f"a mask holds class {wrong}; allowed are 0..{num_classes - 1}, and {IGNORE} for no label")


def _as_classes(guess: Tensor, num_classes: int) -> Tensor:
    """Class indices as they are, and `num_classes` for what is none."""
    low, high = (each.item() for each in torch.aminmax(guess))
    if low >= 0 and high < num_classes:
        return guess
    classes = guess.int()
    return torch.where((classes < 0) | (classes >= num_classes), num_classes, classes)

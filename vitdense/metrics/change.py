"""What change detection is scored by: F1, precision, recall and IoU of what changed, from exact counts of pixels."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from vitdense.contracts import METRICS, MetricConfig, Samples
from vitdense.errors import UserError
from vitdense.metrics.segmentation import MeanIoU


@METRICS.register("change")
class ChangeMetricConfig(MetricConfig):
    """`unchanged` is the class that is no change."""

    unchanged: NonNegativeInt = 0

    def build(self, samples: Samples) -> "ChangeMetric":
        """A metric for this data set's classes; UserError where there is no class of change."""
        if not self.unchanged < len(samples.classes) or len(samples.classes) < 2:
            raise UserError(
                f"metric 'change' needs classes of which {self.unchanged} (metric.unchanged) is no change and another "
                f"is; the data set has {', '.join(samples.classes) or 'none'}"
            )
        return ChangeMetric(samples.classes, unchanged=self.unchanged)


class ChangeMetric(MeanIoU):
    """Counts as for mIoU. A score is 0 where what changed is in the truth or in the prediction alone, and NaN where it
    is in neither; a prediction that names no class is no change found.
    """

    def __init__(self, classes: tuple[str, ...], *, unchanged: int = 0) -> None:
        super().__init__(classes)
        self.unchanged = unchanged

    def compute(self) -> dict[str, float]:
        """F1, precision, recall and IoU of all classes of change as one, mIoU and OA (accuracy) of the classes as they
        are; each in 0..1, and over all pixels of the split."""
        counts = self.counts.cpu().double()
        changed = torch.arange(len(self.classes)) != self.unchanged
        shared = counts[:, :-1][changed][:, changed].sum()
        scores = overlaps(shared, counts[changed].sum(), counts[:, :-1][:, changed].sum())
        whole = super().compute()
        return {name: each.item() for name, each in scores.items()} | {"mIoU": whole["mIoU"], "OA": whole["aAcc"]}

    def details(self) -> Mapping[str, Any]:
        """Columns by class: `classes`, F1, precision, recall, IoU, and `pixels` of the truth."""
        counts = self.counts.cpu().double()
        pixels = counts.sum(dim=1)
        scores = overlaps(counts.diagonal(), pixels, counts[:, :-1].sum(dim=0))
        columns = {name: each.tolist() for name, each in scores.items()}
        return {"classes": list(self.classes), **columns, "pixels": pixels.long().tolist()}


def overlaps(shared: Tensor, truth: Tensor, found: Tensor) -> dict[str, Tensor]:
    """Pixels that truth and prediction share, and those of each, of one shape in fp64 -> F1, precision, recall, IoU: 0
    where nothing is shared, NaN where both are empty."""

    def share(part: Tensor, whole: Tensor) -> Tensor:
        score = torch.where(part > 0, part / whole, 0.0)
        return torch.where(truth + found > 0, score, torch.nan)

    return {
        "F1": share(2 * shared, truth + found),
        "precision": share(shared, found),
        "recall": share(shared, truth),
        "IoU": share(shared, truth + found - shared),
    }

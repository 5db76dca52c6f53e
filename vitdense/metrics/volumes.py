"""Dice of each volume, averaged over volumes, as the challenges of medical pictures score it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from vitdense.contracts import METRICS, Batch, Metric, MetricConfig, Predictions, Samples
from vitdense.errors import UserError
from vitdense.metrics.overlap import Dice


@METRICS.register("volume_dice")
class VolumeDiceConfig(MetricConfig):
    """2 |A and B| / (|A| + |B|) of each class in each volume; the class `background` is left out, null for none."""

    background: NonNegativeInt | None = 0

    def build(self, samples: Samples) -> "VolumeDice":
        """A metric for this data set's classes; UserError where it has none."""
        if not samples.classes:
            raise UserError("metric 'volume_dice' needs a data set with classes")
        if self.background is not None and self.background >= len(samples.classes):
            raise UserError(f"background is {self.background}, and there are {len(samples.classes)} classes")
        return VolumeDice(samples.classes, background=self.background)


class VolumeDice(Metric):
    """The mean over the volumes in whose truth or prediction a class occurs, and of these means over the classes.

    A class that is found where it isn't gives 0 for that volume. Pictures and clips count as volumes do.
    """

    def __init__(self, classes: tuple[str, ...], *, background: int | None = 0) -> None:
        self.classes, self.background = classes, background
        self.totals = torch.zeros(2, len(classes), dtype=torch.float64)  # Dice added up, volumes that have the class

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """predictions: one (D, H, W) tensor of class indices for each of the masks (D, H, W) of `batch`."""
        for prediction, mask, name in zip(predictions, batch["masks"], _names(batch, len(predictions)), strict=True):
            alone = Dice(self.classes)
            alone.update([prediction], {"masks": mask[None], "ids": [name]})
            scores = torch.tensor(alone.details()[alone.name], dtype=torch.float64)
            self.totals = self.totals.to("cpu")
            self.totals += torch.stack([scores.nan_to_num(nan=0.0), (~scores.isnan()).double()])

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the totals by their sum over all processes."""
        self.totals = sum_over_processes(self.totals)

    def compute(self) -> dict[str, float]:
        """The mean over the classes that occur, but the background, in 0..1."""
        scores = self._by_class()
        if self.background is not None:
            scores[self.background] = torch.nan
        return {"Dice": scores.nanmean().item()}

    def details(self) -> Mapping[str, Any]:
        """Columns by class: `Dice` (NaN where absent) and `volumes` that have it."""
        return {
            "classes": list(self.classes),
            "Dice": self._by_class().tolist(),
            "volumes": self.totals.cpu()[1].long().tolist(),
        }

    def _by_class(self) -> Tensor:
        added, volumes = self.totals.cpu()
        return torch.div(added, volumes)


def _names(batch: Batch, count: int) -> list[str]:
    return batch["ids"] if "ids" in batch else [f"volume {index}" for index in range(count)]

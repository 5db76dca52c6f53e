"""`panoptic`: panoptic quality of segments (Kirillov et al. 2019, https://arxiv.org/abs/1801.00868) while training."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitdense.contracts import METRICS, Batch, Metric, MetricConfig, Predictions, Samples, Segments, Target
from vitdense.errors import UserError
from vitdense.metrics.panoptic import VOID, Ints, PanopticQuality, Segment


@METRICS.register("panoptic")
class PanopticConfig(MetricConfig):
    """Classes are of things and of stuff as the data set says; of one that doesn't tell, all are things."""

    def build(self, samples: Samples) -> "Panoptic":
        """A metric for this data set's classes; UserError where it has none."""
        if not samples.classes:
            raise UserError("metric 'panoptic' needs a data set with classes")
        return Panoptic(samples.classes, samples.things or (True,) * len(samples.classes))


class Panoptic(Metric):
    """Counts segments that match, are made up or missed, as whole numbers, and keeps the IoU that each picture adds to
    each class, whose sum is rounded once: neither the order of pictures nor the number of processes matters."""

    def __init__(self, classes: tuple[str, ...], things: tuple[bool, ...]) -> None:
        self.classes, self.things = classes, things
        self.counts = torch.zeros(3, len(classes), dtype=torch.int64)  # matched, made up, missed
        self._overlaps: list[Tensor] = []

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """predictions: Segments for each of batch["targets"], whose masks are of the picture's size."""
        if "targets" not in batch:
            raise UserError("metric 'panoptic' needs a data set of things and stuff, with masks")
        for index, (found, target) in enumerate(zip(predictions, batch["targets"], strict=True)):
            name = batch["ids"][index] if "ids" in batch else f"picture {index}"
            self._check(name, found, target)
            self._count(found.cpu(), target)

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by their sum over all processes."""
        self.counts = sum_over_processes(self.counts).cpu()

    def gather(self, gather_from_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the IoU of single pictures by those of all processes."""
        self._overlaps = [gather_from_processes(self._rows()).cpu()]

    def compute(self) -> dict[str, float]:
        """PQ, SQ and RQ in 0..1, of all classes, of things (_th) and of stuff (_st); NaN where none occurs."""
        return self._quality().compute()

    def details(self) -> Mapping[str, Any]:
        """Columns by class, NaN where absent: class_PQ, class_SQ and class_RQ."""
        columns = {f"class_{name}": column.tolist() for name, column in self._quality().by_class().items()}
        return {"classes": list(self.classes), **columns}

    def _rows(self) -> Tensor:
        """(M, 2) fp64: a class, and the IoU of a picture's segments of it that match."""
        return torch.cat([torch.zeros(0, 2, dtype=torch.float64), *self._overlaps])

    def _quality(self) -> PanopticQuality:
        quality, rows = PanopticQuality(self.things), self._rows().numpy()
        for label in range(len(self.classes)):
            quality.sums[0, label] = math.fsum(rows[rows[:, 0] == label, 1])
        quality.sums[1:] = self.counts.numpy()
        return quality

    def _count(self, found: Segments, target: Target) -> None:
        truth, segments = painted(target)
        crowd = target["crowd"].tolist() if "crowd" in target else [False] * len(segments)
        true = {number: Segment(label, crowd[number - 1]) for number, label in segments.items()}
        ids = found.ids.numpy().astype(np.int64)
        present = set(np.unique(ids).tolist()) - {VOID}
        guesses = {i: Segment(int(found.labels[i - 1])) for i in present}
        share = PanopticQuality(self.things).measure(truth, true, ids, guesses)
        labels = np.flatnonzero(share[0])
        self._overlaps.append(torch.from_numpy(np.stack([labels.astype(np.float64), share[0, labels]], axis=1)))
        self.counts += torch.from_numpy(share[1:].astype(np.int64))

    def _check(self, name: str, found: object, target: Target) -> None:
        """A message for what can't be compared."""
        if not isinstance(found, Segments):
            raise UserError("metric 'panoptic' needs a head that finds segments, such as mask_transformer or eomt")
        if "masks" not in target:
            raise UserError(f"{name}: metric 'panoptic' needs a data set with masks")
        for side, labels in (("prediction", found.labels), ("truth", target["labels"])):
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
                allowed = f"allowed are 0..{len(self.classes) - 1}"
                raise UserError(f"{name}: the {side} has labels {labels.min()}..{labels.max()}; {allowed}")
        sizes = tuple(found.ids.shape), tuple(target["masks"].shape[1:])
        if sizes[0] != sizes[1]:
            raise UserError(f"{name}: the predicted segments are {sizes[0]} and the true masks {sizes[1]} (H, W)")


def painted(target: Target) -> tuple[Ints, dict[int, int]]:
    """A target's masks as one map (H, W) of ids, i + 1 for mask i and VOID where none is, and the labels of those that
    are seen; where masks overlap the earlier one is in front."""
    masks = target["masks"].cpu().numpy()
    ids = np.zeros(masks.shape[1:], np.int64)
    for number in range(len(masks), 0, -1):
        ids[masks[number - 1]] = number
    labels = target["labels"].tolist()
    return ids, {number: labels[number - 1] for number in np.unique(ids).tolist() if number != VOID}

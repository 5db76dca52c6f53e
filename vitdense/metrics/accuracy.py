"""Accuracy at 1 and at 5 of classes of whole pictures or clips, from exact counts by class."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vitdense.contracts import IGNORE, METRICS, Batch, Metric, MetricConfig, Predictions, Samples
from vitdense.errors import UserError

RANKS = (1, 5)


@METRICS.register("accuracy")
class AccuracyConfig(MetricConfig):
    """For data with a label for each picture, and heads that predict logits (K,)."""

    def build(self, samples: Samples) -> "Accuracy":
        """A metric for this data set's classes; UserError where it has none."""
        if not samples.classes:
            raise UserError("metric 'accuracy' needs a data set with classes")
        return Accuracy(samples.classes)


class Accuracy(Metric):
    """Counts how often the true class is among the first 1 and 5.

    Of equal logits the lower class comes first, as argmax has it, and a logit that is not a number comes before all:
    nothing is right by luck. Pictures of label IGNORE are left out.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.counts = torch.zeros(1 + len(RANKS), len(classes), dtype=torch.int64)  # pictures, right at 1, right at 5

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """predictions: logits (K,) of each picture of batch["labels"] (B,)."""
        if "labels" not in batch:
            raise UserError("metric 'accuracy' needs data with a label for each picture")
        if not predictions:
            return
        logits, labels = torch.stack(list(predictions)), batch["labels"]
        size = len(self.classes)
        if logits.ndim != 2 or logits.shape[1] != size:
            raise UserError(
                f"metric 'accuracy' needs logits ({size},) of each picture, given {tuple(logits.shape[1:])}"
            )
        labels = labels.to(logits.device)
        if len(labels) != len(logits) or labels.min() < IGNORE or labels.max() >= size:
            raise UserError(
                f"metric 'accuracy' needs {len(logits)} labels in 0..{size - 1}, or {IGNORE} for none,"
                f" given {labels.tolist()[:8]}"
            )
        logits, labels = logits[labels != IGNORE], labels[labels != IGNORE]
        ranks = label_ranks(logits, labels)
        rows = [torch.ones_like(ranks, dtype=torch.bool), *(ranks <= k for k in RANKS)]
        counts = torch.stack([torch.bincount(labels[row], minlength=size) for row in rows])
        self.counts = self.counts.to(counts.device) + counts

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by their sum over all processes."""
        self.counts = sum_over_processes(self.counts)

    def compute(self) -> dict[str, float]:
        """top1 and top5 over all pictures, and the mean of top1 over the classes that occur, each in 0..1."""
        pictures, *right = self.counts.cpu().double()
        results = {f"top{k}": (found.sum() / pictures.sum()).item() for k, found in zip(RANKS, right, strict=True)}
        return results | {"mean_per_class": (right[0] / pictures).nanmean().item()}

    def details(self) -> Mapping[str, Any]:
        """Columns by class: `classes`, `top1` and `top5` (NaN where absent), and `pictures`."""
        pictures, *right = self.counts.cpu().double()
        columns = {f"top{k}": (found / pictures).tolist() for k, found in zip(RANKS, right, strict=True)}
        return {"classes": list(self.classes), **columns, "pictures": pictures.long().tolist()}


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """logits (N, K), labels (N,) -> (N,): the place of the true class, 1 where none comes before it."""
    own = logits.gather(1, labels[:, None])  # (N, 1)
    later = torch.arange(logits.shape[1], device=logits.device) > labels[:, None]  # (N, K)
    # Counted by what comes behind, since a number that is none compares with nothing.
    behind = (logits < own) | ((logits == own) & later)
    return logits.shape[1] - behind.sum(1)

"""Several metrics at once: `metric: {name: several, metrics: [{name: miou}, {name: boundary_iou}]}`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator
from torch import Tensor

from vitdense.contracts import METRICS, Batch, Metric, MetricConfig, Predictions, Samples


@METRICS.register("several")
class SeveralConfig(MetricConfig):
    """Each of `metrics` is what `metric:` takes alone; `best` follows the first."""

    metrics: tuple[dict[str, Any], ...] = Field(min_length=1)

    @field_validator("metrics")
    @classmethod
    def _check(cls, metrics: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for metric in metrics:
            if metric.get("name") == "several" or "name" not in metric:
                raise ValueError(f"each entry needs the name of a metric, given {metric}")
            _create(metric)
        return metrics

    def build(self, samples: Samples) -> "Several":
        """All of them, for this data set's classes."""
        return Several([_create(metric).build(samples) for metric in self.metrics])


class Several(Metric):
    """Metrics that see the same predictions."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = tuple(metrics)

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """Count one batch in each."""
        for metric in self.metrics:
            metric.update(predictions, batch)

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts of each by their sum over all processes."""
        for metric in self.metrics:
            metric.reduce(sum_over_processes)

    def gather(self, gather_from_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the records of each by those of all processes."""
        for metric in self.metrics:
            metric.gather(gather_from_processes)

    def compute(self) -> dict[str, float]:
        """The results of all, in their order; an earlier one keeps its place and a later one its value."""
        return {name: value for metric in self.metrics for name, value in metric.compute().items()}

    def details(self) -> Mapping[str, Any]:
        """The columns of all: those of classes are the same in each."""
        return {name: column for metric in self.metrics for name, column in metric.details().items()}


def _create(metric: Mapping[str, Any]) -> MetricConfig:
    return METRICS.create(metric["name"], {key: value for key, value in metric.items() if key != "name"})

"""A metric for each of several heads: what a recipe's `heads:` ask for."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny
from torch import Tensor

from vitdense.contracts import METRICS, Batch, Metric, MetricConfig, Predictions, Samples
from vitdense.registry import by_name

NamedMetric = Annotated[SerializeAsAny[MetricConfig], *by_name(METRICS)]


@METRICS.register("tasks")
class TasksMetricConfig(MetricConfig):
    """Metrics by the name of their task; `best` follows the first result of the first."""

    metrics: dict[str, NamedMetric] = Field(min_length=1)

    def build(self, samples: Samples) -> "TasksMetric":
        """All of them, for this data set."""
        return TasksMetric({name: metric.build(samples) for name, metric in self.metrics.items()})


class TasksMetric(Metric):
    """Each metric sees the predictions of its own task."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.metrics = dict(metrics)

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """predictions: {task: prediction} for each picture."""
        for name, metric in self.metrics.items():
            metric.update([each[name] for each in predictions], batch)

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts of each by their sum over all processes."""
        for metric in self.metrics.values():
            metric.reduce(sum_over_processes)

    def gather(self, gather_from_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the records of each by those of all processes."""
        for metric in self.metrics.values():
            metric.gather(gather_from_processes)

    def compute(self) -> dict[str, float]:
        """The results of all, as "<task>_<name>"."""
        return {
            f"{name}_{key}": value for name, metric in self.metrics.items() for key, value in metric.compute().items()
        }

    def details(self) -> Mapping[str, Any]:
        """The columns of the first that has any."""
        return next((found for metric in self.metrics.values() if (found := metric.details())), {})

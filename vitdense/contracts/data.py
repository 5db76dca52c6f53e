"""The face of every data set and metric."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from vitdense.contracts.batches import Batch, Predictions, Sample, Split
from vitdense.registry import Config


class DataConfig(Config):
    """Options that every data set takes. `batch_size` counts the pictures of one optimizer step, over all processes."""

    root: str | None = None
    batch_size: PositiveInt = 16
    eval_batch_size: PositiveInt = 1
    workers: NonNegativeInt = 2
    on_bad_sample: Literal["stop", "skip"] = "stop"

    def build(self, split: Split) -> "Samples":
        """The samples of a split; raises DataError where files are missing."""
        raise NotImplementedError

    def canvas(self, largest: tuple[int, int]) -> tuple[int, int] | None:
        """(H, W) that training batches are padded to whose largest height and width are given; None: just those."""
        return None


class Samples(Dataset[Sample], ABC):
    """A data set whose items are asked for by (epoch, index), so that augmentation depends on nothing else."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    category_ids: tuple[int, ...] = ()
    """The data set's own number of each class, where it has such."""
    things: tuple[bool, ...] = ()
    """For each class whether it is one of things, which are counted, where the data set tells them from stuff."""
    image_ids: Mapping[str, int] = MappingProxyType({})
    """The data set's own number of each picture by the sample's id, where it has such, for predictions in files."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of pictures of the split."""

    @abstractmethod
    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """(epoch, index) -> sample; raises DataError where it can't be read."""

    @abstractmethod
    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """Faults found in the files, each naming file and value; reads at most `limit` masks."""

    def order(self, seed: int, epoch: int) -> Sequence[int] | None:
        """Every index once, in the order of a training epoch, for what is read best in another one than None: any."""
        return None


class Metric(ABC):
    """Counts that add up, or records that are put together: the result is the same under any split into batches and
    processes."""

    @abstractmethod
    def update(self, predictions: Predictions, batch: Batch) -> None:
        """Count one batch."""

    @abstractmethod
    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by their sum over all processes."""

    def gather(self, gather_from_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace records of single pictures by those of all processes, whose rows the function puts together; what
        only counts needs no more than `reduce`, which is called too."""
        return

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Results under the field's usual names; the first is the one that `best` follows."""

    def details(self) -> Mapping[str, Any]:
        """Results by class, for tables."""
        return {}


class MetricConfig(Config):
    """Options of one metric."""

    def build(self, samples: Samples) -> Metric:
        """A metric for this data set's classes."""
        raise NotImplementedError

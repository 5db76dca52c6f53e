"""The face of every head: features in, predictions out, with their losses."""

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from vitdense.contracts.batches import Batch, Outputs, Predictions
from vitdense.contracts.features import Level
from vitdense.registry import Config


class HeadConfig(Config):
    """Options of one head; `num_classes` is taken from the data where the recipe leaves it out."""

    num_classes: PositiveInt | None = None

    def reads_all(self) -> bool:
        """Whether every level is read; what only the others need gets no gradient, and processes must know of that."""
        return True

    def build(self, levels: tuple[Level, ...]) -> "Head":
        """A head for these levels; raises UserError where they can't be used, naming an adapter that would help."""
        raise NotImplementedError


class Head(nn.Module, ABC):
    """Features in, predictions out; owns no parameter outside `forward`. `dense` names the output by pixel, if any:
    views of it (windows, scales, flips) are averaged as class probabilities, or as they are for `depth`.
    """

    num_classes: int
    dense: Literal["logits", "depth"] | None = None
    detects: bool = False
    """Whether predictions are Detections."""

    @abstractmethod
    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """Maps of `levels` -> named outputs; segmentation gives `logits` (B, K, h, w) at the head's own stride."""

    @abstractmethod
    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Scalars, already weighted; their sum is what is trained on."""

    @abstractmethod
    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """Outputs -> one prediction for each picture, at `batch["sizes"]`."""

    def deploy(self, outputs: Outputs, size: tuple[int, int]) -> Outputs:
        """What a model exported to other runtimes gives for pictures of size (H, W): the output by pixel."""
        assert self.dense is not None, f"{type(self).__name__} says nothing of what it gives in other runtimes"
        return {self.dense: outputs[self.dense]}

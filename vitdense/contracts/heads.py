"""The face of every head: features in, predictions out, with their losses."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import Literal, Protocol, Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from vitdense.contracts.batches import Batch, Outputs, Predictions
from vitdense.contracts.features import Backbone, Level
from vitdense.registry import Config


class Tokenizer(Protocol):
    """Texts to the numbers that a text tower reads; it travels to the data's workers."""

    def __call__(self, texts: Sequence[str], /) -> Tensor:
        """N texts -> tokens (N, L) int64, no longer than what the tower looks at."""


class HeadConfig(Config):
    """Options of one head; `num_classes` is taken from the data where the recipe leaves it out."""

    num_classes: PositiveInt | None = None

    def reads_all(self) -> bool:
        """Whether every level is read; what only the others need gets no gradient, and processes must know of that."""
        return True

    def build(self, levels: tuple[Level, ...]) -> "Head":
        """A head for these levels; raises UserError where they can't be used, naming an adapter that would help."""
        raise NotImplementedError

    def build_for(self, backbone: Backbone) -> "Head":
        """A head for this backbone; those that read more of it than its maps look at more than its levels."""
        return self.build(backbone.levels)

    def for_classes(self, count: int) -> Self:
        """The same for so many classes."""
        return self.model_copy(update={"num_classes": count})

    def for_things(self, things: tuple[bool, ...]) -> Self:
        """The same for classes of which these are of things; heads that tell them from stuff look at it."""
        return self

    def tokenizer(self) -> Tokenizer | None:
        """What turns captions into `batch["tokens"]`, for heads that read them."""
        return None


class Head(nn.Module, ABC):
    """Features in, predictions out; owns no parameter outside `forward`. `dense` names the output by pixel, if any:
    views of it (windows, scales, flips) are averaged as class probabilities, or as they are for `depth` and `scores`.
    """

    num_classes: int
    dense: Literal["logits", "depth", "scores"] | None = None
    detects: bool = False
    """Whether predictions are Detections."""
    classifies: bool = False
    """Whether predictions are logits (K,), of one class for the whole picture or clip."""
    segments: bool = False
    """Whether predictions are Segments."""
    compares: bool = False
    """Whether clips are pairs of pictures, each with one output by pixel for both: (B, K, h, w)."""
    stuff: Set[int] = frozenset()
    """The class indices that are no things, where the head tells the two apart."""
    reads: Literal["maps", "vector", "tokens", "blocks"] = "maps"
    """What `forward` is given of the backbone: its maps, the one vector (B, C) of `embed`, or the tokens (B, P + N, C)
    of the last layer, prefix first; or what the head's own `look` makes of its last blocks."""
    joint: bool = False
    """Whether losses compare the pictures of a whole step, so that they can't be summed over parts of it."""
    frozen_backbone: bool = False
    """Whether the backbone is used as it is: no gradient, no training mode."""
    unlocked_layers: int = 0
    """How many of the last layers of a frozen backbone learn all the same."""

    @property
    def tasks(self) -> Mapping[str, "Head"]:
        """The heads that this one consists of, by the name of their task; none for one that is just a head."""
        return {}

    def outputs_of(self, task: str, outputs: Outputs) -> Outputs:
        """Of the outputs, which are called "<task>.<name>" here, those of one of `tasks` under its own names."""
        prefix = f"{task}."
        return {key.removeprefix(prefix): value for key, value in outputs.items() if key.startswith(prefix)}

    def look(self, backbone: Backbone, images: Tensor, batch: Batch | None = None) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> what the head `reads` of the backbone; the batch that they are of says
        what else may matter, such as the progress of training."""
        if self.reads == "maps":
            maps: list[Tensor] = backbone(images)
            return maps
        if self.reads == "vector":
            return [backbone.embed(images)]
        patches, prefix, _ = backbone.tokens(images)
        return [torch.cat([prefix, patches], dim=1)]

    @abstractmethod
    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """What it `reads` -> named outputs; segmentation gives `logits` (B, K, h, w) at the head's own stride."""

    @abstractmethod
    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Scalars, already weighted; their sum is what is trained on."""

    @abstractmethod
    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """Outputs -> one prediction for each picture, at `batch["sizes"]`."""

    def no_decay(self) -> set[str]:
        """Names of parameters of two or more dimensions that weight decay must leave alone."""
        return set()

    def deploy(self, outputs: Outputs, size: tuple[int, int]) -> Outputs:
        """What a model exported to other runtimes gives for pictures of size (H, W): the output by pixel."""
        assert self.dense is not None, f"{type(self).__name__} says nothing of what it gives in other runtimes"
        return {self.dense: outputs[self.dense]}


class ContrastiveHead(Head):
    """Pictures and texts in one space, of unit length. The pictures of a step are compared with all of its texts."""

    joint = True

    @abstractmethod
    def encode_image(self, features: list[Tensor]) -> Tensor:
        """What the head `reads` -> (B, D), not normalised."""

    @abstractmethod
    def encode_text(self, tokens: Tensor) -> Tensor:
        """tokens: (N, L) int64 -> (N, D), not normalised."""

    @abstractmethod
    def scale_and_bias(self) -> Outputs:
        """`logit_scale`, which products of embeddings are multiplied with, and `logit_bias`, if anything is added."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The one whose tokens `encode_text` reads."""

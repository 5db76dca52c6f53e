"""What the rooms promise each other: levels, batches, and the face of every backbone, adapter, head and data set."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.utils.data import Dataset

from vitdense.errors import UserError
from vitdense.registry import Config, Registry

IGNORE = -1
"""The class index of pixels without a label, in every mask and every loss, whatever the files use."""
Split = Literal["train", "val"]
Outputs = dict[str, Tensor]


# ---------------------------------------------------------------- features
@dataclass(frozen=True)
class Level:
    """One feature map that a backbone or an adapter promises: a cell covers `stride` x `stride` pixels."""

    channels: int
    stride: int
    time_stride: int | None = None


class Tokens(NamedTuple):
    """Tokens of one layer: patches (B, h*w, C), prefix (B, P, C) with the class token first, grid (h, w)."""

    patches: Tensor
    prefix: Tensor
    grid: tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """What became of every key of a set of weights; `missing` and `unexpected` stay empty, or loading fails."""

    source: str
    family: str
    matched: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} matched"]
        for name in ("resized", "adapted", "left_out", "fresh"):
            keys = getattr(self, name)
            if keys:
                parts.append(
                    f"{len(keys)} {name.replace('_', ' ')} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
                )
        return f"{self.source} [{self.family}]: {'; '.join(parts)}"


class BackboneConfig(Config):
    """Options that every backbone takes; `weights` is read by `create_backbone`, not by `build`."""

    weights: str | None = None
    in_channels: PositiveInt = 3
    out_indices: tuple[int, ...] | None = None
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    grad_checkpointing: bool = False
    frozen_stages: NonNegativeInt = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def listed(cls) -> list[str]:
        """The names of another library's networks that this class stands for; our own are in the registry."""
        return []

    def build(self) -> "Backbone":
        """A backbone with freshly initialised weights."""
        raise NotImplementedError


class Interaction(Protocol):
    """What an adapter does between the stages of a plain backbone (a stage: the blocks up to one of `out_indices`).

    Made anew for each forward pass, so that it may keep what the next stage needs.
    """

    def before(self, stage: int, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """patches: (B, h * w, C) on their way into a stage, grid (h, w) -> the same shape."""

    def after(self, stage: int, patches: Tensor, grid: tuple[int, int]) -> None:
        """patches: (B, h * w, C) as a stage gave them, not normed; grid (h, w)."""


class Backbone(nn.Module, ABC):
    """Pictures in, maps out: (B, C, H, W), normalised, of any size -> [(B, C_i, ceil(H / s_i), ceil(W / s_i))]."""

    levels: tuple[Level, ...]
    embed_dim: int
    num_layers: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    config: BackboneConfig | None = None
    adapter_config: "AdapterConfig | None" = None
    load_report: LoadReport | None = None

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> one map for each of `levels`, finest first."""

    @abstractmethod
    def tokens(self, images: Tensor) -> Tokens:
        """images: (B, C, H, W), normalised -> the last layer's tokens, normed."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), normalised -> (B, embed_dim), pooled as published."""

    def forward_stages(self, images: Tensor, interaction: Interaction | None = None) -> list[Tokens]:
        """As `forward`, with `interaction` between the stages, giving the tokens that the maps are made of.

        Normed where the maps are; plain backbones only, others raise UserError.
        """
        raise UserError(
            f"{type(self).__name__} has no stages of one stride that an adapter could enter: "
            "take one that works on maps, such as `adapter: {name: simple_pyramid}`"
        )

    @abstractmethod
    def layer_of(self, parameter: str) -> int:
        """The depth of a parameter for layer-wise learning rates: 0 for the embedding, up to `num_layers`."""

    def no_decay(self) -> set[str]:
        """Names of parameters of two or more dimensions that weight decay must leave alone."""
        return set()

    def unused_in_maps(self) -> set[str]:
        """Names of parameters that only `tokens` or `embed` need, such as those of an attention pool."""
        return set()


class AdapterConfig(Config):
    """Options of one adapter."""

    def build(self, levels: tuple[Level, ...]) -> "Adapter":
        """An adapter for these levels; raises UserError where they can't be used."""
        raise NotImplementedError


class Adapter(nn.Module, ABC):
    """Levels in, levels out."""

    levels: tuple[Level, ...]

    def adapt(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """The backbone's maps of images (B, C, H, W), adapted; what works between the stages overrides this."""
        maps: list[Tensor] = self(backbone(images), images)
        return maps

    @abstractmethod
    def forward(self, maps: list[Tensor], images: Tensor) -> list[Tensor]:
        """maps of the backbone's levels, images (B, C, H, W) -> maps of this adapter's `levels`."""


# ---------------------------------------------------------------- batches and heads


class Sample(TypedDict, total=False):
    """image (C, H, W) uint8; mask (H, W) int16, IGNORE where unlabelled; depth (H, W) fp32 metres, 0 where unknown."""

    id: str
    image: Tensor
    mask: Tensor
    depth: Tensor
    skipped: list[str]


class Batch(TypedDict, total=False):
    """images (B, C, H, W), uint8 or floats in [0, 1]; masks (B, H, W); depth (B, H, W) in metres, 0 where unknown;
    sizes: (H, W) of predictions; lean: only the head itself reads its outputs, at the pictures' size: any will do."""

    ids: list[str]
    images: Tensor
    lean: bool
    masks: Tensor
    depth: Tensor
    sizes: list[tuple[int, int]]
    skipped: list[str]


Predictions = list[Any]
"""One entry for each picture of the batch: a (H, W) tensor of class indices for segmentation, of metres for depth."""


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

    @abstractmethod
    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """Maps of `levels` -> named outputs; segmentation gives `logits` (B, K, h, w) at the head's own stride."""

    @abstractmethod
    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Scalars, already weighted; their sum is what is trained on."""

    @abstractmethod
    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """Outputs -> one prediction for each picture, at `batch["sizes"]`."""


# ---------------------------------------------------------------- data and metrics


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


class Samples(Dataset[Sample], ABC):
    """A data set whose items are asked for by (epoch, index), so that augmentation depends on nothing else."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    @abstractmethod
    def __len__(self) -> int:
        """The number of pictures of the split."""

    @abstractmethod
    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """(epoch, index) -> sample; raises DataError where it can't be read."""

    @abstractmethod
    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """Faults found in the files, each naming file and value; reads at most `limit` masks."""


class Metric(ABC):
    """Counts that add up: the result is the same under any split into batches and processes."""

    @abstractmethod
    def update(self, predictions: Predictions, batch: Batch) -> None:
        """Count one batch."""

    @abstractmethod
    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the counts by their sum over all processes."""

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


BACKBONES: Registry[BackboneConfig] = Registry("backbone", ("vitdense.backbones",))
ADAPTERS: Registry[AdapterConfig] = Registry("adapter", ("vitdense.adapters",))
HEADS: Registry[HeadConfig] = Registry("head")
DATA: Registry[DataConfig] = Registry("data set", ("vitdense.data",))
METRICS: Registry[MetricConfig] = Registry("metric", ("vitdense.metrics",))

"""What gives feature maps: levels and tokens, and the face of every backbone and adapter."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from vitdense.errors import UserError
from vitdense.registry import Config


@dataclass(frozen=True)
class Level:
    """One feature map that a backbone or an adapter promises: a cell covers `stride` x `stride` pixels.

    Of clips and volumes, `time_stride` of their frames or slices besides: their maps are (B, C, T', H', W'), with
    T' = ceil(T / time_stride). None where a map has no time axis.
    """

    channels: int
    stride: int
    time_stride: int | None = None


class Tokens(NamedTuple):
    """Tokens of one layer: patches (B, N, C), prefix (B, P, C) with the class token first, grid (h, w) or (t, h, w).

    The grid's product is N; patches of clips lie time by time.
    """

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

    def inner(self) -> "BackboneConfig | None":
        """The config of the backbone that this one is built around, whose weights are then read, or None."""
        return None

    def around(self, backbone: "Backbone") -> "Backbone":
        """A backbone around the one that `inner` describes; its `config` holds what that one's weights brought."""
        raise NotImplementedError


class Interaction(Protocol):
    """What an adapter does between the stages of a plain backbone (a stage: the blocks up to one of `out_indices`).

    Made anew for each forward pass, so that it may keep what the next stage needs.
    """

    def before(self, stage: int, patches: Tensor, grid: tuple[int, ...]) -> Tensor:
        """patches: (B, h * w, C) on their way into a stage, grid (h, w) -> the same shape."""

    def after(self, stage: int, patches: Tensor, grid: tuple[int, ...]) -> None:
        """patches: (B, h * w, C) as a stage gave them, not normed; grid (h, w)."""


class Guests(Protocol):
    """Tokens of a head that pass through the last `blocks` of a plain backbone beside its own, and are attended to.

    Made anew for each forward pass, so that it may keep what it has seen.
    """

    blocks: int
    looks: bool
    """Whether `visible` is asked before each of the blocks."""

    def enter(self, patches: Tensor) -> Tensor:
        """patches: (B, N, C) before the first of the blocks -> guests (B, Q, C)."""

    def visible(self, block: int, guests: Tensor, patches: Tensor, grid: tuple[int, ...]) -> Tensor | None:
        """guests: (B, Q, C) and patches: (B, h * w, C) before one of the blocks, counted from the first that they pass,
        both normed; grid (h, w) -> the patches that each guest may attend to, (B, Q, h * w) bool, None: all."""


class Backbone(nn.Module, ABC):
    """Pictures in, maps out: (B, C, H, W), normalised, of any size -> [(B, C_i, ceil(H / s_i), ceil(W / s_i))]."""

    levels: tuple[Level, ...]
    embed_dim: int
    num_layers: int
    guest_blocks: int = 0
    """Through how many of its last blocks a head's tokens can pass: of all in plain ViTs, of none in others."""
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

    def attention_blocks(self) -> list[nn.Module]:
        """Modules that tell, by `look` with their inputs, what they attend to, first to last; UserError without any."""
        raise UserError(f"{type(self).__name__} does not tell what it attends to; our own backbones do")

    def maps_and_vector(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """images: (B, C, H, W), normalised -> what `forward` and `embed` give, in one pass where that can be."""
        return self(images), self.embed(images)

    def value_tokens(self, images: Tensor) -> Tokens:
        """images: (B, C, H, W), normalised -> the last layer's tokens, each as `embed` would give it of itself alone.

        They lie in the space of `embed`, so that what was learnt for its vector reads them too. Here they are the
        normed tokens, of which most networks without a class token take the mean.
        """
        return self.tokens(images)

    def forward_stages(self, images: Tensor, interaction: Interaction | None = None) -> list[Tokens]:
        """As `forward`, with `interaction` between the stages, giving the tokens that the maps are made of.

        Normed where the maps are; plain backbones only, others raise UserError.
        """
        raise UserError(
            f"{type(self).__name__} has no stages of one stride that an adapter could enter: "
            "take one that works on maps, such as `adapter: {name: simple_pyramid}`"
        )

    def forward_with(self, images: Tensor, guests: Guests) -> tuple[Tensor, Tokens]:
        """images: (B, C, H, W), normalised -> guests (B, Q, C) and tokens as the last block gives them, normed.

        Plain backbones only, others raise UserError.
        """
        raise UserError(
            f"{type(self).__name__} has no blocks of one stride that a head's queries could pass through: take a plain "
            "ViT, or the head mask_transformer, which reads maps"
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

    def unused_in_blocks(self) -> set[str]:
        """Names of parameters that `forward_with` doesn't need."""
        return set()

    def unused_in_embed(self) -> set[str]:
        """Names of parameters that only the maps need, such as a norm for each of them."""
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

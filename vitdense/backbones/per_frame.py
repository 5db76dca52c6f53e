"""Picture backbones on clips: every frame by itself, with attention over time on what comes out if asked."""

from typing import Any

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from vitdense.contracts import BACKBONES, Backbone, BackboneConfig, Level, Tokens
from vitdense.errors import UserError
from vitdense.layers.temporal_mixing import TemporalMixer


@BACKBONES.register_family("per_frame")
class PerFrameConfig(BackboneConfig):
    """`per_frame/NAME` runs the backbone NAME (our own, or `timm/...`, `hf/...`, `open_clip/...`) on every frame.

    `options` are that backbone's; the common ones may stand here as well. `temporal_depth` layers of attention over
    time follow each map and the vector.
    """

    architecture: str
    options: dict[str, Any] = Field(default_factory=dict)
    temporal_depth: NonNegativeInt = 0

    @classmethod
    def listed(cls) -> list[str]:
        """Our own picture backbones behind the prefix; other libraries' go there as well."""
        names = BACKBONES.names()
        return [f"per_frame/{name}" for name in names if "frames" not in BACKBONES.find(name)[0].model_fields]

    def inner(self) -> BackboneConfig:
        """The config of the picture backbone."""
        common = {
            name: getattr(self, name)
            for name, field in BackboneConfig.model_fields.items()
            if getattr(self, name) != field.default
        }
        return BACKBONES.create_or_tell(self.architecture, common | self.options)

    def holding(self, inner: BackboneConfig | None) -> "PerFrameConfig":
        """The same with all options of a picture backbone that was built, its weights' own among them."""
        if inner is None:
            return self
        options = {name: value for name, value in dict(inner).items() if name not in ("weights", "architecture")}
        return self.model_copy(update={"options": options})

    def around(self, backbone: Backbone) -> "PerFrame":
        """The picture backbone on clips."""
        return PerFrame(self, backbone)

    def build(self) -> "PerFrame":
        """A PerFrame with fresh weights."""
        inner = self.inner()
        backbone = inner.build()
        backbone.config = inner
        return PerFrame(self, backbone)


class PerFrame(Backbone):
    """Clips (B, C, T, H, W) in, maps (B, C_i, T, h_i, w_i) out, for the picture backbone's maps (B * T, C_i, h_i, w_i).

    Tokens are the frames' own, one frame after the other, not mixed over time; prefix and vector are the frames' mean.
    """

    def __init__(self, config: PerFrameConfig, backbone: Backbone) -> None:
        super().__init__()
        if any(level.time_stride is not None for level in backbone.levels):
            raise UserError(f"per_frame takes picture backbones, and {config.architecture} takes clips: leave it out")
        self.config = config.holding(backbone.config)
        depth = config.temporal_depth
        self.backbone = backbone
        self.levels = tuple(Level(level.channels, level.stride, 1) for level in backbone.levels)
        self.embed_dim, self.num_layers = backbone.embed_dim, backbone.num_layers + bool(depth)
        self.mean, self.std = backbone.mean, backbone.std
        self.mixers = nn.ModuleList(_mixer(level.channels, depth) for level in self.levels)
        self.vector_mixer = _mixer(self.embed_dim, depth)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: clips (B, C, T, H, W), normalised -> one map (B, C_i, T, h, w) for each of `levels`."""
        return self._mixed(self.backbone(self._frames(images)), images)

    def tokens(self, images: Tensor) -> Tokens:
        """images: clips (B, C, T, H, W), normalised -> patches (B, T * N, C), prefix (B, P, C), grid (T, h, w)."""
        return self._joined(self.backbone.tokens(self._frames(images)), images)

    def value_tokens(self, images: Tensor) -> Tokens:
        """As `tokens`, in the space of the frames' vectors."""
        return self._joined(self.backbone.value_tokens(self._frames(images)), images)

    def embed(self, images: Tensor) -> Tensor:
        """images: clips (B, C, T, H, W), normalised -> (B, embed_dim)."""
        return self._pooled(self.backbone.embed(self._frames(images)), images)

    def maps_and_vector(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """images: clips (B, C, T, H, W), normalised -> what `forward` and `embed` give."""
        maps, vectors = self.backbone.maps_and_vector(self._frames(images))
        return self._mixed(maps, images), self._pooled(vectors, images)

    def _frames(self, images: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B * T, C, H, W)."""
        if images.ndim != 5 or images.shape[1] != len(self.mean):
            raise UserError(f"expected clips (B, {len(self.mean)}, T, H, W), given {tuple(images.shape)}")
        if 0 in images.shape[2:]:
            raise UserError(f"expected clips of one frame and one pixel at least, given {tuple(images.shape)}")
        return images.transpose(1, 2).flatten(0, 1)

    def _mixed(self, maps: list[Tensor], images: Tensor) -> list[Tensor]:
        clips = [_as_clips(each, images).transpose(1, 2) for each in maps]  # (B, C_i, T, h_i, w_i)
        return [mixer(each) for mixer, each in zip(self.mixers, clips, strict=True)]

    def _pooled(self, vectors: Tensor, images: Tensor) -> Tensor:
        mixed: Tensor = self.vector_mixer(_as_clips(vectors, images).mT)  # (B, C, T)
        return mixed.mean(dim=2)

    def _joined(self, tokens: Tokens, images: Tensor) -> Tokens:
        patches, prefix = (_as_clips(each, images) for each in (tokens.patches, tokens.prefix))
        return Tokens(patches.flatten(1, 2), prefix.mean(dim=1), (images.shape[2], *tokens.grid))

    def layer_of(self, parameter: str) -> int:
        """As of the picture backbone; what mixes is new, and comes after its last layer."""
        part, _, rest = parameter.partition(".")
        return self.backbone.layer_of(rest) if part == "backbone" else self.num_layers

    def no_decay(self) -> set[str]:
        """The picture backbone's, under their names here."""
        return {f"backbone.{name}" for name in self.backbone.no_decay()}

    def unused_in_maps(self) -> set[str]:
        """The picture backbone's, under their names here, and what mixes vectors."""
        mixing = {f"vector_mixer.{name}" for name, _ in self.vector_mixer.named_parameters()}
        return mixing | {f"backbone.{name}" for name in self.backbone.unused_in_maps()}

    def unused_in_embed(self) -> set[str]:
        """The picture backbone's, under their names here, and what mixes maps."""
        mixing = {f"mixers.{name}" for name, _ in self.mixers.named_parameters()}
        return mixing | {f"backbone.{name}" for name in self.backbone.unused_in_embed()}


def _mixer(channels: int, depth: int) -> nn.Module:
    return TemporalMixer(channels, depth=depth) if depth else nn.Identity()


def _as_clips(frames: Tensor, images: Tensor) -> Tensor:
    """(B * T, ...) -> (B, T, ...)."""
    return torch.unflatten(frames, 0, (images.shape[0], images.shape[2]))

"""Options of RT-DETR (Zhao et al. 2023, https://arxiv.org/abs/2304.08069; v2: Lv et al. 2024,
https://arxiv.org/abs/2407.17140) and of D-FINE (Peng et al. 2024, https://arxiv.org/abs/2410.13842)."""

from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from heads.detection import DetectionConfig
from heads.detection.denoising import DenoisingConfig
from heads.detection.matching import MatchCosts
from heads.rtdetr.blocks import Activation
from vitdense.contracts import HEADS, Level
from vitdense.errors import UserError
from vitdense.registry import Config

if TYPE_CHECKING:
    from heads.rtdetr.head import RtDetr


class DistributionConfig(Config):
    """D-FINE's distributions: each side of a box is a mean over `bins` + 1 distances, dense near 0 by `reg_scale`, that
    reach to `up` of the box's side (and twice that at both ends).

    The quality of `top_values` of each side corrects the scores. `pairs` says with whose scores and boxes a layer's
    distribution learns: its own, or "shifted", those of the layer before, as transformers 5 counts them.
    """

    bins: PositiveInt = 32
    reg_scale: PositiveFloat = 4.0
    up: PositiveFloat = 0.5
    top_values: PositiveInt = 4
    quality_dim: PositiveInt = 64
    quality_layers: PositiveInt = 2
    fgl_weight: NonNegativeFloat = 0.15
    ddf_weight: NonNegativeFloat = 1.5
    ddf_temperature: PositiveFloat = 5.0
    pairs: Literal["layers", "shifted"] = "layers"

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.bins % 2 or self.bins < 4:
            raise ValueError(f"bins is {self.bins}; allowed: even numbers from 4 on, half of them on each side of 0")
        if self.top_values > self.bins + 1:
            raise ValueError(f"top_values is {self.top_values}, but there are {self.bins + 1} values")
        return self


@HEADS.register("rtdetr")
@HEADS.register("dfine", fusion="elan", refinement="distribution")
class RtDetrConfig(DetectionConfig):
    """RT-DETRv2 as published; `dfine` is D-FINE. `num_levels` are read by the decoder: the coarsest that are there,
    and coarser ones made by convolutions of stride 2 where that is too few.

    `fusion` is RT-DETR's blocks or D-FINE's, `hidden_expansion` their inner width and `depth_mult` their depth; points
    are counted by head and level, once for all levels or for each.
    """

    num_queries: PositiveInt = 300
    max_detections: PositiveInt = 300
    matcher: MatchCosts = MatchCosts(label=2.0)
    denoising: DenoisingConfig = DenoisingConfig()

    encoder_hidden_dim: PositiveInt = 256
    encoder_layers: NonNegativeInt = 1
    encoder_ffn_dim: PositiveInt = 1024
    encoder_heads: PositiveInt = 8
    encoder_activation: Activation = "gelu"
    normalize_before: bool = False
    position_temperature: PositiveFloat = 10_000.0
    fusion: Literal["csp", "elan"] = "csp"
    activation: Activation = "silu"
    hidden_expansion: PositiveFloat = 1.0
    depth_mult: PositiveFloat = 1.0

    num_levels: PositiveInt = 3
    hidden_dim: PositiveInt = 256
    decoder_layers: PositiveInt = 6
    decoder_ffn_dim: PositiveInt = 1024
    decoder_heads: PositiveInt = 8
    decoder_activation: Activation = "relu"
    decoder_points: PositiveInt | tuple[PositiveInt, ...] = 4
    decoder_method: Literal["default", "discrete"] = "default"
    offset_scale: PositiveFloat = 0.5
    refinement: Literal["boxes", "distribution"] = "boxes"
    distribution: DistributionConfig = DistributionConfig()

    varifocal_alpha: float = Field(default=0.75, ge=0, le=1)
    varifocal_gamma: NonNegativeFloat = 2.0
    batch_norm_eps: PositiveFloat = 1e-5
    layer_norm_eps: PositiveFloat = 1e-5

    @property
    def points(self) -> tuple[int, ...]:
        """How many points each head reads of each level."""
        given = self.decoder_points
        return given if isinstance(given, tuple) else (given,) * self.num_levels

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, width, heads in (
            ("encoder_hidden_dim", self.encoder_hidden_dim, self.encoder_heads),
            ("hidden_dim", self.hidden_dim, self.decoder_heads),
        ):
            if width % heads:
                raise ValueError(f"{name} is {width}, which doesn't divide by {heads} heads")
        if self.encoder_hidden_dim % 4:
            raise ValueError(f"encoder_hidden_dim is {self.encoder_hidden_dim}; positions need a multiple of 4")
        if len(self.points) != self.num_levels:
            raise ValueError(f"decoder_points has {len(self.points)} numbers for {self.num_levels} levels")
        return self

    def reads_all(self) -> bool:
        """Finer levels than `num_levels` counts from the coarsest one are not read."""
        return False

    def build(self, levels: tuple[Level, ...]) -> "RtDetr":
        """An RT-DETR for maps of any strides that are multiples of each other; raises UserError for others."""
        from heads.rtdetr.dfine import DFine
        from heads.rtdetr.head import RtDetr

        return DFine(self, levels) if self.refinement == "distribution" else RtDetr(self, levels)


def chosen_levels(levels: tuple[Level, ...], most: int) -> list[int]:
    """Which levels are read: of each stride the last one, and `most` of them at most, the coarsest; finest first.

    UserError where a stride is no multiple of the one before.
    """
    last = {level.stride: index for index, level in enumerate(levels)}
    strides = sorted(last)[-most:]
    for fine, coarse in pairwise(strides):
        if coarse % fine:
            raise UserError(
                f"rtdetr joins levels whose strides are multiples of each other; got strides {strides}. "
                "An adapter makes such of one map: `adapter: {name: simple_pyramid}`"
            )
    return [last[stride] for stride in strides]

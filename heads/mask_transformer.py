"""Mask2Former: queries that become a class and a mask each, by masked attention to a pyramid (Cheng et al. 2022,
https://arxiv.org/abs/2112.01527); parameters are named much as in transformers' Mask2FormerForUniversalSegmentation."""

from typing import Self

from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from heads.detection.transformer import Shape
from heads.mask_classification import MaskClassificationConfig, MaskClassificationHead
from heads.mask_classification.masked_attention import MaskedDecoder
from heads.mask_classification.pixel_decoder import PixelDecoder
from vitdense.contracts import HEADS, Batch, Level, Outputs
from vitdense.errors import UserError


@HEADS.register("mask_transformer")
class MaskTransformerConfig(MaskClassificationConfig):
    """Mask2Former as published. The pixel decoder works in `pixel_channels`, its `encoder_layers` over the `levels`
    coarsest maps, finer ones are added on top, and masks are products of `mask_channels`. `decoder_layers` read one
    level after the other; `input_projection` projects the levels to their `channels`, as must be where these differ.
    """

    channels: PositiveInt = 256
    num_heads: PositiveInt = 8
    mlp_channels: PositiveInt = 2048
    decoder_layers: PositiveInt = 9
    pixel_channels: PositiveInt = 256
    encoder_mlp_channels: PositiveInt = 1024
    encoder_layers: PositiveInt = 6
    mask_channels: PositiveInt = 256
    levels: PositiveInt = 3
    input_projection: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pixel_channels % 32 or self.pixel_channels % self.num_heads:
            raise ValueError(
                f"pixel_channels {self.pixel_channels} must divide by 32, for group norm, and by num_heads"
            )
        if self.channels % 4 or self.channels % self.num_heads:
            raise ValueError(f"channels {self.channels} must divide by 4 and by num_heads {self.num_heads}")
        if self.channels != self.pixel_channels and not self.input_projection:
            raise ValueError(
                f"channels {self.channels} and pixel_channels {self.pixel_channels} differ: set input_projection: true"
            )
        return self

    def build(self, levels: tuple[Level, ...]) -> "MaskTransformer":
        """A Mask2Former for these levels; UserError where they are no pyramid, or too few."""
        return MaskTransformer(self, levels)


class MaskTransformer(MaskClassificationHead):
    """Maps -> `logits` (B, Q, K + 1) and `masks` (B, Q, h, w) at the finest level's stride; in training those of all
    layers, as the losses read them."""

    last_layer_first = True
    config: MaskTransformerConfig

    def __init__(self, config: MaskTransformerConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config)
        strides = [level.stride for level in levels]
        if any(level.time_stride is not None for level in levels):
            raise UserError("mask_transformer needs the maps of pictures, got levels with a time stride")
        if len(levels) < config.levels or strides != sorted(strides) or strides[0] == strides[-1]:
            raise UserError(
                f"mask_transformer reads a pyramid of {config.levels} levels or more, got strides {strides}: "
                "give backbone.out_indices, head.levels, or adapter: {name: simple_pyramid}"
            )
        pixel = Shape(config.pixel_channels, config.num_heads, config.encoder_mlp_channels)
        self.pixel_decoder = PixelDecoder(
            levels, pixel, config.mask_channels, layers=config.encoder_layers, count=config.levels
        )
        self.decoder = MaskedDecoder(
            Shape(config.channels, config.num_heads, config.mlp_channels),
            config.mask_channels,
            config.pixel_channels,
            queries=config.num_queries,
            layers=config.decoder_layers,
            levels=config.levels,
            projects=config.input_projection,
        )
        self.class_predictor = nn.Linear(config.channels, self.num_classes + 1)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i), finest first -> outputs as of the class."""
        maps, pixels = self.pixel_decoder(features)
        states, embeddings = self.decoder(maps, pixels)
        if not self.training:
            return self.answer(self.class_predictor(states[-1]), embeddings[-1], pixels, batch)
        logits = self.class_predictor(states)
        return {
            "logits": logits[-1],
            "layer_logits": logits,
            "mask_embeddings": embeddings,
            "pixel_embeddings": pixels,
        }

    def no_decay(self) -> set[str]:
        """Embeddings of queries and levels, as published."""
        embeddings = ("decoder.queries_features", "decoder.queries_embedder", "decoder.level_embed")
        return {"pixel_decoder.level_embed", *(f"{name}.weight" for name in embeddings)}

"""Fully convolutional head on one level (Long et al. 2015, https://arxiv.org/abs/1411.4038), in mmsegmentation's form;
parameters are named as in transformers' UperNetFCNHead."""

from itertools import pairwise

import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from heads.conv_block import ConvBlock
from heads.segmentation import SegmentationConfig, SegmentationHead, classifier
from vitdense.contracts import HEADS, Batch, Level, Outputs
from vitdense.errors import UserError


@HEADS.register("fcn")
class FcnConfig(SegmentationConfig):
    """`level` picks the map by index; `concat_input` lays it on top of the convolutions' output and fuses both."""

    channels: PositiveInt = 256
    level: int = -1
    convs: NonNegativeInt = 2
    kernel_size: PositiveInt = 3
    dilation: PositiveInt = 1
    concat_input: bool = True

    @model_validator(mode="after")
    def _check_kernel(self) -> "FcnConfig":
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that maps keep their size; got {self.kernel_size}")
        return self

    def reads_all(self) -> bool:
        """One level is read."""
        return False

    def build(self, levels: tuple[Level, ...]) -> "Fcn":
        """A fully convolutional head for any levels; raises UserError where there is none of index `level`."""
        return Fcn(self, levels)


class Fcn(SegmentationHead):
    """One map -> `logits` at its stride."""

    def __init__(self, config: FcnConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        if not -len(levels) <= config.level < len(levels):
            raise UserError(f"level is {config.level}, but the backbone gives {len(levels)} levels")
        self.level = config.level
        self.decode_head = FcnDecoder(
            levels[config.level].channels,
            config.channels,
            self.num_classes,
            convs=config.convs,
            dropout=config.dropout,
            kernel_size=config.kernel_size,
            dilation=config.dilation,
            concat_input=config.concat_input,
        )

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i) -> logits (B, K, h, w) at the chosen level."""
        return {"logits": self.decode_head(features[self.level])}


class FcnDecoder(nn.Module):
    """Convolutions and a classifier; `concat_input` lays the given map on top of their output and fuses both."""

    def __init__(
        self,
        channels: int,
        width: int,
        num_classes: int,
        *,
        convs: int,
        dropout: float,
        kernel_size: int = 3,
        dilation: int = 1,
        concat_input: bool = False,
    ) -> None:
        super().__init__()
        sizes = [channels] + [width] * convs
        self.convs = nn.Sequential(
            *(ConvBlock(a, b, kernel_size=kernel_size, dilation=dilation) for a, b in pairwise(sizes))
        )
        self.conv_cat = ConvBlock(channels + sizes[-1], width, kernel_size=kernel_size) if concat_input else None
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width if concat_input else sizes[-1], num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        """feature: (B, C, h, w) -> (B, K, h, w)."""
        maps = self.convs(feature)
        if self.conv_cat is not None:
            maps = self.conv_cat(torch.cat([feature, maps], dim=1))
        logits: Tensor = self.classifier(self.dropout(maps))
        return logits

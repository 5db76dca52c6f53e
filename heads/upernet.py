"""UperNet: pyramid pooling on the coarsest level, a feature pyramid above it, and an auxiliary head (Xiao et al. 2018,
https://arxiv.org/abs/1807.10221); parameters are named as in transformers' UperNetForSemanticSegmentation."""

from itertools import pairwise

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from heads.conv_block import ConvBlock
from heads.fcn import FcnDecoder
from heads.segmentation import SegmentationConfig, SegmentationHead, classifier
from vitdense.contracts import HEADS, Batch, Level, Outputs
from vitdense.errors import UserError
from vitdense.layers.eager import is_bare
from vitdense.layers.folding import folded, folds, norm_in_place
from vitdense.ops.fusion import conv_of_resized
from vitdense.ops.resizing import resize


@HEADS.register("upernet")
class UperNetConfig(SegmentationConfig):
    """UperNet as published; `auxiliary_weight: 0` leaves the auxiliary head out."""

    channels: PositiveInt = 512
    pool_scales: tuple[PositiveInt, ...] = Field(default=(1, 2, 3, 6), min_length=1)
    auxiliary_weight: NonNegativeFloat = 0.4
    auxiliary_channels: PositiveInt = 256
    auxiliary_level: int = -2
    auxiliary_convs: PositiveInt = 1

    def build(self, levels: tuple[Level, ...]) -> SegmentationHead:
        """A UperNet for a pyramid of two levels or more; raises UserError for anything else."""
        return UperNet(self, levels)


class UperNet(SegmentationHead):
    """Maps of a pyramid -> `logits` at the finest level's stride; in training `auxiliary_logits` at its own level's."""

    def __init__(self, config: UperNetConfig, levels: tuple[Level, ...]) -> None:
        check_pyramid(levels)
        super().__init__(config, levels)
        self.auxiliary_weight = config.auxiliary_weight
        self.decode_head = PyramidDecoder(config, tuple(level.channels for level in levels))
        self.auxiliary_level = config.auxiliary_level
        self.auxiliary_head: FcnDecoder | None = None
        if config.auxiliary_weight > 0:
            if not -len(levels) <= config.auxiliary_level < len(levels):
                raise UserError(f"auxiliary_level is {config.auxiliary_level}, but there are {len(levels)} levels")
            width, convs = config.auxiliary_channels, config.auxiliary_convs
            self.auxiliary_head = FcnDecoder(
                levels[config.auxiliary_level].channels, width, self.num_classes, convs=convs, dropout=config.dropout
            )

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i), finest first -> logits (B, K, h_0, w_0)."""
        outputs = {"logits": self.decode_head(features)}
        if self.training and self.auxiliary_head is not None:
            outputs["auxiliary_logits"] = self.auxiliary_head(features[self.auxiliary_level])
        return outputs


class PyramidDecoder(nn.Module):
    """Pyramid pooling, top-down fusion, and one classifier over all levels at the finest size."""

    def __init__(self, config: UperNetConfig, channels: tuple[int, ...]) -> None:
        super().__init__()
        width = config.channels
        self.align_corners = config.align_corners
        self.pools_to_one_cell = 1 in config.pool_scales
        self.classifier = classifier(width, config.num_classes or 0)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvBlock(channels[-1], width, kernel_size=1))
            for scale in config.pool_scales
        )
        joined = channels[-1] + len(config.pool_scales) * width
        self.bottleneck = FusionBlock(joined, width, kernel_size=3, align_corners=config.align_corners)
        self.lateral_convs = nn.ModuleList(ConvBlock(size, width, kernel_size=1) for size in channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvBlock(width, width, kernel_size=3) for _ in channels[:-1])
        joined = len(channels) * width
        self.fpn_bottleneck = FusionBlock(joined, width, kernel_size=3, align_corners=config.align_corners)
        self.dropout = nn.Dropout2d(config.dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        """features: (B, C_i, h_i, w_i), finest first -> (B, K, h_0, w_0)."""
        joined = self._pool(features[-1])
        fused = [joined]
        for i in reversed(range(len(self.lateral_convs))):
            joined = add_resized(self.lateral_convs[i](features[i]), joined, align_corners=self.align_corners)
            fused.insert(0, self.fpn_convs[i](joined))
        del joined  # without a backward pass nobody needs it any more
        maps = self.fpn_bottleneck(fused)
        del fused
        logits: Tensor = self.classifier(self.dropout(maps))
        return logits

    def _pool(self, coarsest: Tensor) -> Tensor:
        if self.training and len(coarsest) == 1:
            self._check_batch_norm(coarsest)
        maps: Tensor = self.bottleneck([coarsest, *(module(coarsest) for module in self.psp_modules)])
        return maps

    def _check_batch_norm(self, coarsest: Tensor) -> None:
        """Batch norm has no variance over one value; synchronised and frozen norms have more to go by."""
        alone = type(self.bottleneck.batch_norm) is nn.BatchNorm2d and self.bottleneck.batch_norm.training
        if alone and (self.pools_to_one_cell or coarsest.shape[-2:].numel() == 1):
            raise UserError(
                "upernet trains with batch norm over pooled 1x1 maps and needs a batch of at least 2 pictures per "
                "process, got 1: raise data.batch_size or use fewer processes or accumulation steps"
            )


class FusionBlock(ConvBlock):
    """The same over several maps, joined at the size of the first."""

    def __init__(self, channels: int, out_channels: int, *, kernel_size: int, align_corners: bool) -> None:
        super().__init__(channels, out_channels, kernel_size=kernel_size)
        self.align_corners = align_corners

    def forward(self, maps: list[Tensor]) -> Tensor:  # type: ignore[override]
        """maps: (B, C_i, h_i, w_i), the first the largest -> (B, C_out, h_0, w_0)."""
        size = (maps[0].shape[-2], maps[0].shape[-1])
        if not is_bare(nn.Conv2d, self.conv):
            return super().forward(
                torch.cat([resize(each, size, align_corners=self.align_corners) for each in maps], 1)
            )
        padding = self.conv.kernel_size[0] // 2
        is_folded, weight, bias = folds(maps[0], self.conv, self.batch_norm), self.conv.weight, None
        in_place = is_folded and not torch.is_grad_enabled()  # the folded weight would be the largest tensor of all
        if is_folded and not in_place:
            weight, bias = folded(self.conv, self.batch_norm)
        out = conv_of_resized(maps, weight, bias, size=size, align_corners=self.align_corners, padding=padding)
        if in_place:
            norm_in_place(out, self.conv, self.batch_norm)
        elif not is_folded:
            out = self.batch_norm(out)
        return out.relu_()


def add_resized(maps: Tensor, coarse: Tensor, *, align_corners: bool) -> Tensor:
    """maps (B, C, H, W), coarse (B, C, h, w) -> their sum (B, C, H, W); in place of maps without a backward pass."""
    resized = resize(coarse, (maps.shape[-2], maps.shape[-1]), align_corners=align_corners)
    return maps + resized if torch.is_grad_enabled() else maps.add_(resized)


def check_pyramid(levels: tuple[Level, ...]) -> None:
    """Raise UserError unless there are two levels or more, each coarser than the one before."""
    strides = [level.stride for level in levels]
    if len(levels) < 2 or any(coarse <= fine for fine, coarse in pairwise(strides)):
        raise UserError(
            f"upernet needs a pyramid: at least 2 levels of growing stride, finest first; got strides {strides}. "
            "An adapter makes one: `adapter: {name: simple_pyramid}` of a plain ViT's maps, reassemble of a hybrid's"
        )

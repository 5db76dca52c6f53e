"""UperNet (Xiao et al. 2018, https://arxiv.org/abs/1807.10221) for clips and volumes: every kernel, pool and resize of
it has a time axis; on one frame it is UperNet with the middle of its kernels."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from heads.frames import resize_3d
from heads.linear_3d import classifier_3d
from heads.segmentation_3d import SegmentationHead3d
from heads.upernet import UperNetConfig, check_pyramid
from vitdense.contracts import HEADS, Batch, Level, Outputs
from vitdense.errors import UserError


@HEADS.register("upernet_3d")
class UperNet3dConfig(UperNetConfig):
    """As UperNet's; `auxiliary_weight: 0` leaves the auxiliary head out."""

    def build(self, levels: tuple[Level, ...]) -> "UperNet3d":
        """For a pyramid of two levels or more with a time axis; raises UserError for anything else."""
        return UperNet3d(self, levels)


class UperNet3d(SegmentationHead3d):
    """Maps of a pyramid -> `logits` at the finest level's strides; in training `auxiliary_logits` at their level's."""

    def __init__(self, config: UperNet3dConfig, levels: tuple[Level, ...]) -> None:
        check_pyramid(levels)
        super().__init__(config, levels, name="upernet_3d")
        self.auxiliary_weight = config.auxiliary_weight
        self.decode_head = PyramidDecoder3d(config, tuple(level.channels for level in levels))
        self.auxiliary_level = config.auxiliary_level
        self.auxiliary_head: nn.Module | None = None
        if config.auxiliary_weight > 0:
            if not -len(levels) <= config.auxiliary_level < len(levels):
                raise UserError(f"auxiliary_level is {config.auxiliary_level}, but there are {len(levels)} levels")
            widths = [levels[config.auxiliary_level].channels] + [config.auxiliary_channels] * config.auxiliary_convs
            convs = [ConvBlock3d(a, b, kernel_size=3) for a, b in pairwise(widths)]
            self.auxiliary_head = nn.Sequential(
                *convs, nn.Dropout3d(config.dropout), classifier_3d(widths[-1], self.num_classes)
            )

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, t_i, h_i, w_i), finest first -> logits (B, K, t_0, h_0, w_0)."""
        outputs = {"logits": self.decode_head(features)}
        if self.training and self.auxiliary_head is not None:
            outputs["auxiliary_logits"] = self.auxiliary_head(features[self.auxiliary_level])
        return outputs


class ConvBlock3d(nn.Module):
    """Convolution without bias, batch norm, ReLU; the size stays."""

    def __init__(self, channels: int, out_channels: int, *, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.batch_norm = nn.BatchNorm3d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, T, H, W) -> (B, C_out, T, H, W)."""
        normed: Tensor = self.batch_norm(self.conv(maps))
        return normed.relu_()


class PyramidDecoder3d(nn.Module):
    """Pyramid pooling, top-down fusion, and one classifier over all levels at the finest size."""

    def __init__(self, config: UperNet3dConfig, channels: tuple[int, ...]) -> None:
        super().__init__()
        width = config.channels
        self.pools_to_one_cell = 1 in config.pool_scales
        self.classifier = classifier_3d(width, config.num_classes or 0)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool3d(scale), ConvBlock3d(channels[-1], width, kernel_size=1))
            for scale in config.pool_scales
        )
        joined = channels[-1] + len(config.pool_scales) * width
        self.bottleneck = ConvBlock3d(joined, width, kernel_size=3)
        self.lateral_convs = nn.ModuleList(ConvBlock3d(size, width, kernel_size=1) for size in channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvBlock3d(width, width, kernel_size=3) for _ in channels[:-1])
        self.fpn_bottleneck = ConvBlock3d(len(channels) * width, width, kernel_size=3)
        self.dropout = nn.Dropout3d(config.dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        """features: (B, C_i, t_i, h_i, w_i), finest first -> (B, K, t_0, h_0, w_0)."""
        coarsest = features[-1]
        if self.training and len(coarsest) == 1 and self.pools_to_one_cell:
            raise UserError(
                "upernet_3d trains with batch norm over maps pooled to one cell and needs a batch of at least 2 per "
                "process, got 1: raise data.batch_size or use fewer processes or accumulation steps"
            )
        size = _size(coarsest)
        joined = self.bottleneck(
            torch.cat([coarsest, *(resize_3d(module(coarsest), size) for module in self.psp_modules)], dim=1)
        )
        fused = [joined]
        for i in reversed(range(len(self.lateral_convs))):
            lateral = self.lateral_convs[i](features[i])
            joined = lateral + resize_3d(joined, _size(lateral))
            fused.insert(0, self.fpn_convs[i](joined))
        finest = _size(fused[0])
        maps = self.fpn_bottleneck(torch.cat([resize_3d(each, finest) for each in fused], dim=1))
        logits: Tensor = self.classifier(self.dropout(maps))
        return logits


def _size(maps: Tensor) -> tuple[int, int, int]:
    return maps.shape[-3], maps.shape[-2], maps.shape[-1]

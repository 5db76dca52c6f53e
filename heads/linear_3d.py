"""`linear` for clips and volumes: batch norm and one 1x1x1 convolution over all levels."""

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from heads.frames import resize_3d
from heads.linear import LinearConfig, pick
from heads.segmentation_3d import SegmentationHead3d
from vitdense.contracts import HEADS, Batch, Level, Outputs


@HEADS.register("linear_3d")
class Linear3dConfig(LinearConfig):
    """Linear probe of maps with a time axis; `use_levels` picks maps by index, all of them where it is left out.

    `finer` is how many parts along time, height and width each cell has logits of its own for (ESPCN's shuffle,
    https://arxiv.org/abs/1609.05158, with a time axis): a plain transformer's cells are larger than much that it sees.
    """

    finer: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1)

    def build(self, levels: tuple[Level, ...]) -> "Linear3d":
        """A linear head for any levels with a time stride."""
        return Linear3d(self, levels)


class Linear3d(SegmentationHead3d):
    """All maps, brought to the finest one's size and laid on top of each other -> `logits` at its strides, or finer."""

    def __init__(self, config: Linear3dConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels, name="linear_3d")
        self.wanted, self.finest = pick(levels, config.use_levels)
        channels = sum(levels[index].channels for index in self.wanted)
        self.norm = nn.BatchNorm3d(channels) if config.norm == "batch" else nn.Identity()
        self.dropout = nn.Dropout3d(config.dropout)
        self.finer = config.finer
        parts = config.finer[0] * config.finer[1] * config.finer[2]
        self.classifier = classifier_3d(channels, self.num_classes * parts)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, t_i, h_i, w_i) -> logits (B, K, t, h, w) at the finest level used, times `finer`."""
        frames, height, width = features[self.finest].shape[-3:]
        aligned = [resize_3d(features[index], (frames, height, width)) for index in self.wanted]
        logits = self.classifier(self.dropout(self.norm(torch.cat(aligned, dim=1))))
        return {"logits": shuffle_3d(logits, self.finer)}


def shuffle_3d(maps: Tensor, finer: tuple[int, int, int]) -> Tensor:
    """maps: (B, K * f_t * f_h * f_w, t, h, w) -> (B, K, f_t * t, f_h * h, f_w * w)."""
    if finer == (1, 1, 1):
        return maps
    batch, channels, frames, height, width = maps.shape
    along, down, across = finer
    parts = maps.reshape(batch, channels // (along * down * across), along, down, across, frames, height, width)
    mixed = parts.permute(0, 1, 5, 2, 6, 3, 7, 4)  # (B, K, t, f_t, h, f_h, w, f_w)
    return mixed.reshape(batch, -1, frames * along, height * down, width * across)


def classifier_3d(channels: int, num_classes: int) -> nn.Conv3d:
    """A 1x1x1 convolution to class logits: normal, std 0.01."""
    layer = nn.Conv3d(channels, num_classes, kernel_size=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer

"""Linear head: batch norm and one 1x1 convolution over all levels, the protocol that DINOv2 probes frozen features with
(Oquab et al. 2023, https://arxiv.org/abs/2304.07193)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from heads.segmentation import SegmentationConfig, SegmentationHead, classifier, resize
from vitdense.contracts import HEADS, Batch, Level, Outputs
from vitdense.errors import UserError


@HEADS.register("linear")
class LinearConfig(SegmentationConfig):
    """Linear probe; `use_levels` picks maps by index, all of them where it is left out."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    norm: Literal["batch", "none"] = "batch"
    use_levels: tuple[int, ...] | None = None

    def reads_all(self) -> bool:
        """All are, unless some are picked."""
        return self.use_levels is None

    def build(self, levels: tuple[Level, ...]) -> "Linear":
        """A linear head for any levels."""
        return Linear(self, levels)


class Linear(SegmentationHead):
    """All maps, brought to the finest one's size and laid on top of each other -> `logits` at its stride."""

    def __init__(self, config: LinearConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        wanted = tuple(range(len(levels))) if config.use_levels is None else config.use_levels
        if not wanted or any(not -len(levels) <= index < len(levels) for index in wanted):
            raise UserError(f"use_levels picks maps {list(wanted)}, but the backbone gives {len(levels)}")
        self.wanted = wanted
        self.finest = min(wanted, key=lambda index: levels[index].stride)
        channels = sum(levels[index].channels for index in wanted)
        self.norm = nn.BatchNorm2d(channels) if config.norm == "batch" else nn.Identity()
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = classifier(channels, self.num_classes)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i) -> logits (B, K, h, w) at the finest level used."""
        size = (features[self.finest].shape[-2], features[self.finest].shape[-1])
        aligned = [resize(features[index], size, align_corners=self.align_corners) for index in self.wanted]
        maps = self.norm(torch.cat(aligned, dim=1))
        return {"logits": self.classifier(self.dropout(maps))}

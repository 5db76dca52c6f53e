"""Linear heads: batch norm and one 1x1 convolution over all levels, as DINOv2 probes with (Oquab et al. 2023,
https://arxiv.org/abs/2304.07193); depth is a mean of bins (https://arxiv.org/abs/2011.14141)."""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from heads.depth import DepthConfig, DepthHead, cut_to_picture
from heads.segmentation import SegmentationConfig, SegmentationHead, classifier
from vitdense.contracts import HEADS, Batch, Level, Outputs
from vitdense.errors import UserError
from vitdense.ops.resizing import full_precision, resize

# DINOv2's: what every bin has at least, before they are made to add up to 1.
LEAST = 0.1


@HEADS.register("linear")
class LinearConfig(SegmentationConfig):
    """Linear probe; `use_levels` picks maps by index, all of them where it is left out."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    norm: Literal["batch", "none"] = "batch"
    use_levels: tuple[int, ...] | None = None

    def reads_all(self) -> bool:
        """All are, unless some are picked."""
        return self.use_levels is None

    def build(self, levels: tuple[Level, ...]) -> SegmentationHead:
        """A linear head for any levels."""
        return Linear(self, levels)


class Linear(SegmentationHead):
    """All maps, brought to the finest one's size and laid on top of each other -> `logits` at its stride."""

    def __init__(self, config: LinearConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        self.wanted, self.finest = pick(levels, config.use_levels)
        channels = sum(levels[index].channels for index in self.wanted)
        self.norm = nn.BatchNorm2d(channels) if config.norm == "batch" else nn.Identity()
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = classifier(channels, self.num_classes)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i) -> logits (B, K, h, w) at the finest level used."""
        size = (features[self.finest].shape[-2], features[self.finest].shape[-1])
        aligned = [resize(features[index], size, align_corners=self.align_corners) for index in self.wanted]
        maps = self.norm(torch.cat(aligned, dim=1))
        return {"logits": self.classifier(self.dropout(maps))}


@HEADS.register("linear_depth")
class LinearDepthConfig(DepthConfig):
    """Linear probe of depth; `use_levels` picks maps by index, `upsample` is how much finer depth is than the maps."""

    bins: int = Field(default=256, ge=2)
    upsample: PositiveInt = 4
    norm: Literal["batch", "none"] = "batch"
    use_levels: tuple[int, ...] | None = None

    def reads_all(self) -> bool:
        """All are, unless some are picked."""
        return self.use_levels is None

    def build(self, levels: tuple[Level, ...]) -> "LinearDepth":
        """A linear head for any levels."""
        return LinearDepth(self, levels)


class LinearDepth(DepthHead):
    """All maps laid on top of each other -> `depth`: bins from `min_depth` to `max_depth`, weighted by what a 1x1
    convolution says of them.

    DINOv2 enlarges the maps first; norm and convolution are the same for every cell, so that they may come before, at a
    fraction of the work (in training the norm then sees the maps as they are).
    """

    bins: Tensor

    def __init__(self, config: LinearDepthConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        self.wanted, self.finest = pick(levels, config.use_levels)
        channels = sum(levels[index].channels for index in self.wanted)
        self.norm = nn.BatchNorm2d(channels) if config.norm == "batch" else nn.Identity()
        self.classifier = nn.Conv2d(channels, config.bins, kernel_size=1)
        self.upsample, self.stride = config.upsample, levels[self.finest].stride
        bins = torch.linspace(config.min_depth, config.max_depth, config.bins)
        self.register_buffer("bins", bins, persistent=False)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i) -> depth (B, 1, upsample * h, upsample * w), cut to the picture."""
        height, width = features[self.finest].shape[-2:]
        aligned = [resize(features[index], (height, width)) for index in self.wanted]
        scores = self.classifier(self.norm(torch.cat(aligned, dim=1)))
        scores = resize(scores, (height * self.upsample, width * self.upsample))
        # The linear norm: no bin is ever out of reach.
        shares = full_precision(scores).relu() + LEAST
        weighted = torch.einsum("bkhw,k->bhw", shares, self.bins.to(shares.dtype))
        depth = (weighted / shares.sum(dim=1))[:, None]  # (B, 1, h, w)
        return {"depth": cut_to_picture(depth, features[self.finest], batch, stride=self.stride, finer=self.upsample)}


def pick(levels: tuple[Level, ...], use_levels: tuple[int, ...] | None) -> tuple[tuple[int, ...], int]:
    """The maps that are used, and which of them is the finest; UserError where there is no such map."""
    wanted = tuple(range(len(levels))) if use_levels is None else use_levels
    if not wanted or any(not -len(levels) <= index < len(levels) for index in wanted):
        raise UserError(f"use_levels picks maps {list(wanted)}, but the backbone gives {len(levels)}")
    return wanted, min(wanted, key=lambda index: levels[index].stride)

"""SegFormer's all-MLP head: every level projected to one width, and one linear fusion of them all (Xie et al. 2021,
https://arxiv.org/abs/2105.15203); parameters are named as in transformers' SegformerDecodeHead."""

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from heads.segmentation import SegmentationConfig, SegmentationHead, classifier
from vitdense.contracts import HEADS, Batch, Level, Outputs
from vitdense.ops.resizing import resize


@HEADS.register("segformer")
class SegFormerConfig(SegmentationConfig):
    """256 channels in the published B0 and B1, 768 in the others."""

    channels: PositiveInt = 256

    def build(self, levels: tuple[Level, ...]) -> "SegFormer":
        """A SegFormer head for any levels."""
        return SegFormer(self, levels)


class SegFormer(SegmentationHead):
    """All maps, each projected at its own size -> `logits` at the finest level's stride."""

    def __init__(self, config: SegFormerConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        width = config.channels
        self.finest = min(range(len(levels)), key=lambda index: levels[index].stride)
        self.linear_projections = nn.ModuleList(Projection(level.channels, width) for level in levels)
        self.linear_fuse = nn.Conv2d(len(levels) * width, width, kernel_size=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = classifier(width, self.num_classes)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i) -> logits (B, K, h, w) at the finest level."""
        maps = self.batch_norm(self._fuse(features)).relu_()
        return {"logits": self.classifier(self.dropout(maps))}

    def _fuse(self, features: list[Tensor]) -> Tensor:
        """The fusion of the concatenated maps, coarsest first, as a sum over levels.

        Projection and fusion are linear and weigh each pixel alone, so both commute with the bilinear resizing: each
        level is fused at its own size, and only the sum is as large as the finest map.
        """
        size = (features[self.finest].shape[-2], features[self.finest].shape[-1])
        kernels = self.linear_fuse.weight.chunk(len(features), dim=1)[::-1]  # the published concatenation is reversed
        total: Tensor | None = None
        for feature, projection, kernel in zip(features, self.linear_projections, kernels, strict=True):
            fused = nn.functional.conv2d(projection(feature), kernel)
            resized = resize(fused, size, align_corners=self.align_corners)
            total = resized if total is None else total + resized
        assert total is not None
        return total


class Projection(nn.Module):
    """A linear layer over the channels of a map."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, h, w) -> (B, C_out, h, w)."""
        return torch.nn.functional.conv2d(maps, self.proj.weight[..., None, None], self.proj.bias)

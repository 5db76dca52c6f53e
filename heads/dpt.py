"""DPT: convolutional fusion of four levels from coarse to fine, for segmentation and depth (Ranftl et al. 2021,
https://arxiv.org/abs/2103.13413); parameters are named as in transformers' DPT."""

from itertools import pairwise
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from heads.depth import DepthConfig, DepthHead, cut_to_picture
from heads.segmentation import SegmentationConfig, SegmentationHead, classifier
from vitdense.contracts import HEADS, Batch, HeadConfig, Level, Outputs
from vitdense.errors import UserError


class FusionConfig(HeadConfig):
    """Options of the neck. `batch_norm` goes behind the residual units' convolutions, whose `bias` is there without."""

    channels: PositiveInt = 256
    batch_norm: bool = False
    bias: bool | None = None


@HEADS.register("dpt")
class DPTConfig(SegmentationConfig, FusionConfig):
    """DPT for segmentation; `auxiliary_weight: 0` leaves the auxiliary head out."""

    auxiliary_weight: NonNegativeFloat = 0.4

    def build(self, levels: tuple[Level, ...]) -> "DPT":
        """A DPT for a pyramid; raises UserError for anything else."""
        return DPT(self, levels)


@HEADS.register("dpt_depth")
class DPTDepthConfig(DepthConfig, FusionConfig):
    """DPT for depth. `activation` relu gives metres as they come, sigmoid a share of `max_depth`, as metric
    DepthAnything; `projection` is a convolution more."""

    head_channels: PositiveInt = 32
    projection: bool = False
    activation: Literal["relu", "sigmoid"] = "relu"

    def build(self, levels: tuple[Level, ...]) -> "DPTDepth":
        """A DPT for a pyramid; raises UserError for anything else."""
        return DPTDepth(self, levels)


class DPT(SegmentationHead):
    """Maps of a pyramid -> `logits` at a quarter of the finest stride; in training `auxiliary_logits` at half of it."""

    def __init__(self, config: DPTConfig, levels: tuple[Level, ...]) -> None:
        check_levels("dpt", levels)
        super().__init__(config, levels)
        self.auxiliary_weight = config.auxiliary_weight
        self.finest = levels[0].stride
        self.neck = FusionNeck(config, levels)
        self.head = PixelClassifier(config.channels, self.num_classes, dropout=config.dropout)
        self.auxiliary_head = None
        if config.auxiliary_weight > 0:
            self.auxiliary_head = PixelClassifier(config.channels, self.num_classes, dropout=0.1)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i), finest first -> logits (B, K, 4 h_0, 4 w_0), cut to the picture."""
        fused = self.neck(features)
        logits = F.interpolate(self.head(fused), scale_factor=2, mode="bilinear", align_corners=True)
        outputs = {"logits": cut_to_picture(logits, features[0], batch, stride=self.finest, finer=4)}
        if self.training and self.auxiliary_head is not None:
            auxiliary = self.auxiliary_head(fused)
            outputs["auxiliary_logits"] = cut_to_picture(auxiliary, features[0], batch, stride=self.finest, finer=2)
        return outputs


class DPTDepth(DepthHead):
    """Maps of a pyramid -> `depth` at a quarter of the finest stride."""

    def __init__(self, config: DPTDepthConfig, levels: tuple[Level, ...]) -> None:
        check_levels("dpt_depth", levels)
        super().__init__(config, levels)
        self.finest = levels[0].stride
        self.neck = FusionNeck(config, levels)
        self.head = DepthTail(config)
        self.scale = config.max_depth if config.activation == "sigmoid" else 1.0

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i), finest first -> depth (B, 1, 4 h_0, 4 w_0), cut to the picture."""
        depth = self.head(self.neck(features)) * self.scale
        return {"depth": cut_to_picture(depth, features[0], batch, stride=self.finest, finer=4)}


class FusionNeck(nn.Module):
    """A 3 x 3 convolution for each level, and fusion from the coarsest up to half of the finest stride."""

    def __init__(self, config: FusionConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        width = config.channels
        strides = [level.stride for level in levels]
        self.ratios = [strides[-1] // stride for stride in strides]
        self.convs = nn.ModuleList(
            nn.Conv2d(level.channels, width, kernel_size=3, padding=1, bias=False) for level in levels
        )
        self.fusion_stage = FusionStage(config, len(levels))

    def forward(self, features: list[Tensor]) -> Tensor:
        """features: (B, C_i, h_i, w_i), finest first -> (B, channels, 2 h_0, 2 w_0), and what it takes to be whole."""
        rows, columns = features[-1].shape[-2:]
        whole = [extend(each, rows * r, columns * r) for each, r in zip(features, self.ratios, strict=True)]
        coarsest, *finer = [conv(each) for conv, each in zip(reversed(self.convs), reversed(whole), strict=True)]
        fused: Tensor = self.fusion_stage(coarsest, finer)
        return fused


class FusionStage(nn.Module):
    """A layer for each level, the coarsest first."""

    def __init__(self, config: FusionConfig, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(config, first=i == 0) for i in range(count))

    def forward(self, coarsest: Tensor, finer: list[Tensor]) -> Tensor:
        """coarsest: (B, C, h, w), finer: of growing sizes -> (B, C, 2 H, 2 W), twice the finest's size."""
        sizes = [(each.shape[-2], each.shape[-1]) for each in [coarsest, *finer]]
        targets = [*sizes[1:], (2 * sizes[-1][0], 2 * sizes[-1][1])]
        fused: Tensor = coarsest
        for layer, residual, target in zip(self.layers, [None, *finer], targets, strict=True):
            fused = layer(fused, residual, target)
        return fused


class FusionLayer(nn.Module):
    """The finer level added through a residual unit, another unit, and up to the size of the next."""

    def __init__(self, config: FusionConfig, *, first: bool) -> None:
        super().__init__()
        self.projection = nn.Conv2d(config.channels, config.channels, kernel_size=1)
        # transformers has one in the first layer too, and never uses it.
        self.residual_layer1 = None if first else ResidualUnit(config)
        self.residual_layer2 = ResidualUnit(config)

    def forward(self, fused: Tensor, residual: Tensor | None, target: tuple[int, int]) -> Tensor:
        """fused: (B, C, h, w), residual: the same -> (B, C, *target)."""
        if self.residual_layer1 is not None:
            fused = fused + self.residual_layer1(residual)
        # A 1 x 1 convolution and interpolation may change places: the weights of each new cell add up to 1.
        projected = self.projection(self.residual_layer2(fused))
        return F.interpolate(projected, size=target, mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """Twice ReLU and a 3 x 3 convolution, with batch norm behind it or not; added to what came in."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, norm = config.channels, config.batch_norm
        bias = not norm if config.bias is None else config.bias
        self.convolution1 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=bias)
        self.convolution2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=bias)
        self.batch_norm1 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.batch_norm2 = nn.BatchNorm2d(width) if norm else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, h, w) -> the same shape."""
        hidden = self.batch_norm1(self.convolution1(maps.relu()))
        out: Tensor = self.batch_norm2(self.convolution2(hidden.relu())) + maps
        return out


class PixelClassifier(nn.Module):
    """A 3 x 3 convolution, batch norm, ReLU, and a classifier."""

    def __init__(self, channels: int, num_classes: int, *, dropout: float) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            classifier(channels, num_classes),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, h, w) -> logits (B, K, h, w)."""
        logits: Tensor = self.head(maps)
        return logits


class DepthTail(nn.Module):
    """Convolutions to one value for each cell, twice as fine; never below 0."""

    def __init__(self, config: DPTDepthConfig) -> None:
        super().__init__()
        width = config.channels
        self.projection = nn.Conv2d(width, width, kernel_size=3, padding=1) if config.projection else None
        last = nn.Conv2d(config.head_channels, 1, kernel_size=1)
        assert last.bias is not None
        if config.activation == "relu":
            # Where a ReLU gives 0 nothing is learned: training starts from a depth that is above it.
            nn.init.ones_(last.bias)
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, kernel_size=3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(width // 2, config.head_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            last,
            nn.ReLU() if config.activation == "relu" else nn.Sigmoid(),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, h, w) -> (B, 1, 2 h, 2 w)."""
        if self.projection is not None:
            maps = self.projection(maps).relu()
        depth: Tensor = self.head(maps)
        return depth


def check_levels(name: str, levels: tuple[Level, ...]) -> None:
    """Raise UserError unless there are two levels or more, each stride a multiple of the one before."""
    strides = [level.stride for level in levels]
    if len(levels) < 2 or any(coarse <= fine or coarse % fine for fine, coarse in pairwise(strides)):
        raise UserError(
            f"{name} needs a pyramid: at least 2 levels, each stride a multiple of the one before; got strides "
            f"{strides}. `adapter: {{name: reassemble}}` makes one of four maps of a plain ViT or a hybrid, "
            "`adapter: {name: simple_pyramid}` of one"
        )


def extend(maps: Tensor, rows: int, columns: int) -> Tensor:
    """maps: (B, C, h, w) -> (B, C, rows, columns), the last row and column repeated.

    Finer levels end where the picture ends, coarser ones reach beyond; on whole cells of the coarsest all levels lie
    upon each other, where resizing one to another would stretch it.
    """
    return F.pad(maps, (0, columns - maps.shape[-1], 0, rows - maps.shape[-2]), mode="replicate")

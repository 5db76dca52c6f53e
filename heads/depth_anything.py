"""Depth Anything: DPT on the patches as they are, its depth read at every pixel (https://arxiv.org/abs/2401.10891);
parameters are named as in transformers' DepthAnythingForDepthEstimation."""

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from heads.depth import DepthConfig, DepthHead, cut_to_picture
from heads.fusion import FusionConfig, FusionStage, check_levels, extend
from vitdense.contracts import HEADS, Batch, Level, Outputs

# How much finer than the patches the maps of a plain backbone become; the last is half as fine.
FACTORS = (4, 2, 1)


@HEADS.register("depth_anything")
class DepthAnythingConfig(DepthConfig, FusionConfig):
    """Takes four plain maps of any patch without an adapter, or a pyramid as it is. `activation` as of `dpt_depth`."""

    channels: PositiveInt = 64
    neck_channels: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (48, 96, 192, 384)
    head_channels: PositiveInt = 32
    activation: Literal["relu", "sigmoid"] = "relu"

    def build(self, levels: tuple[Level, ...]) -> "DepthAnything":
        """A head for four plain maps or a pyramid; raises UserError for anything else."""
        return DepthAnything(self, levels)


class DepthAnything(DepthHead):
    """Maps of four blocks, or of a pyramid -> `depth` (B, 1, H, W) of whole pixels."""

    def __init__(self, config: DepthAnythingConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        self.stride = levels[0].stride
        plain = len(levels) == len(config.neck_channels) and len({level.stride for level in levels}) == 1
        if not plain:
            check_levels("depth_anything", levels)
        self.neck = Neck(config, levels, plain=plain)
        self.finer = 2 * FACTORS[0] if plain else 2
        self.head = PixelTail(config)
        self.scale = config.max_depth if config.activation == "sigmoid" else 1.0

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, h_i, w_i), finest first -> depth (B, 1, H, W), cut to the picture."""
        fused = self.neck(features)
        height, width = (side // self.finer * self.stride for side in fused.shape[-2:])
        depth = self.head(fused, (height, width)) * self.scale
        return {"depth": cut_to_picture(depth, features[0], batch, stride=self.stride, finer=self.stride)}


class Neck(nn.Module):
    """Plain maps to four sizes, a 3 x 3 convolution for each, and fusion up to twice the finest."""

    def __init__(self, config: DepthAnythingConfig, levels: tuple[Level, ...], *, plain: bool) -> None:
        super().__init__()
        channels = config.neck_channels if plain else tuple(level.channels for level in levels)
        self.reassemble_stage = Reassembling(levels, channels) if plain else None
        self.convs = nn.ModuleList(
            nn.Conv2d(each, config.channels, kernel_size=3, padding=1, bias=False) for each in channels
        )
        self.fusion_stage = FusionStage(config, len(levels))
        self.ratios = [levels[-1].stride // level.stride for level in levels]

    def forward(self, features: list[Tensor]) -> Tensor:
        """features: (B, C_i, h_i, w_i), finest first -> (B, channels, H, W)."""
        if self.reassemble_stage is not None:
            features = self.reassemble_stage(features)
        else:
            rows, columns = features[-1].shape[-2:]
            features = [extend(each, rows * r, columns * r) for each, r in zip(features, self.ratios, strict=True)]
        coarsest, *finer = [conv(each) for conv, each in zip(reversed(self.convs), reversed(features), strict=True)]
        fused: Tensor = self.fusion_stage(coarsest, finer)
        return fused


class Reassembling(nn.Module):
    """Each map by a 1 x 1 convolution, then four times, twice, once and half as fine, whatever a patch is."""

    def __init__(self, levels: tuple[Level, ...], channels: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"projection": nn.Conv2d(level.channels, width, kernel_size=1), "resize": resize})
            for level, width, resize in zip(levels, channels, map(_resize, channels, (*FACTORS, None)), strict=True)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """maps: four of (B, C_i, h, w) -> (B, channels_i, h_i, w_i), h_i of 4 h, 2 h, h and ceil(h / 2)."""
        return [layer["resize"](layer["projection"](each)) for layer, each in zip(self.layers, maps, strict=True)]  # type: ignore[index]


class PixelTail(nn.Module):
    """Convolutions to one value for each pixel; never below 0."""

    def __init__(self, config: DepthAnythingConfig) -> None:
        super().__init__()
        width = config.channels
        self.conv1 = nn.Conv2d(width, width // 2, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width // 2, config.head_channels, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(config.head_channels, 1, kernel_size=1)
        self.activation = nn.ReLU() if config.activation == "relu" else nn.Sigmoid()
        assert self.conv3.bias is not None
        if config.activation == "relu":
            # Where a ReLU gives 0 nothing is learned: training starts from a depth that is above it.
            nn.init.ones_(self.conv3.bias)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """maps: (B, C, h, w) -> (B, 1, *size)."""
        enlarged = F.interpolate(self.conv1(maps), size=size, mode="bilinear", align_corners=True)
        depth: Tensor = self.activation(self.conv3(self.conv2(enlarged).relu()))
        return depth


def _resize(channels: int, factor: int | None) -> nn.Module:
    if factor is None:
        return nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
    return nn.Identity() if factor == 1 else nn.ConvTranspose2d(channels, channels, kernel_size=factor, stride=factor)

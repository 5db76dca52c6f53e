"""DPT's neck: convolutional fusion of levels from coarse to fine (Ranftl et al. 2021,
https://arxiv.org/abs/2103.13413); parameters are named as in transformers' DPT."""

from itertools import pairwise

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.contracts import HeadConfig, Level
from vitdense.errors import UserError
from vitdense.layers.folding import conv_and_norm


class FusionConfig(HeadConfig):
    """Options of the neck. `batch_norm` goes behind the residual units' convolutions, whose `bias` is there without."""

    channels: PositiveInt = 256
    batch_norm: bool = False
    bias: bool | None = None


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

    def forward(self, features: list[Tensor], *, resized: bool = True) -> Tensor:
        """features: (B, C_i, h_i, w_i), finest first -> (B, channels, 2 h_0, 2 w_0), and what it takes to be whole.

        Without `resized` (B, channels, h_0, w_0), for a convolution that resizes them by itself.
        """
        rows, columns = features[-1].shape[-2:]
        whole = [extend(each, rows * r, columns * r) for each, r in zip(features, self.ratios, strict=True)]
        coarsest, *finer = [conv(each) for conv, each in zip(reversed(self.convs), reversed(whole), strict=True)]
        del whole
        fused: Tensor = self.fusion_stage(coarsest, finer, resized=resized)
        return fused


class FusionStage(nn.Module):
    """A layer for each level, the coarsest first."""

    def __init__(self, config: FusionConfig, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(config, first=i == 0) for i in range(count))

    def forward(self, coarsest: Tensor, finer: list[Tensor], *, resized: bool = True) -> Tensor:
        """coarsest: (B, C, h, w), finer: of growing sizes up to (H, W) -> (B, C, 2 H, 2 W), or (B, C, H, W)."""
        fused: Tensor = coarsest
        for layer, residual in zip(self.layers, [None, *finer], strict=True):
            fused = layer(fused, residual)
        return enlarge(fused, (2 * fused.shape[-2], 2 * fused.shape[-1])) if resized else fused


class FusionLayer(nn.Module):
    """What comes from the coarser level, brought to this one's size and added through a residual unit; another unit."""

    def __init__(self, config: FusionConfig, *, first: bool) -> None:
        super().__init__()
        self.projection = nn.Conv2d(config.channels, config.channels, kernel_size=1)
        # transformers has one in the first layer too, and never uses it.
        self.residual_layer1 = None if first else ResidualUnit(config)
        self.residual_layer2 = ResidualUnit(config)

    def forward(self, fused: Tensor, residual: Tensor | None) -> Tensor:
        """fused: (B, C, h, w), residual: (B, C, H, W), None in the first layer -> residual's shape, or fused's."""
        if self.residual_layer1 is not None:
            assert residual is not None
            made = self.residual_layer1(residual)
            fused = add(made, enlarge(fused, (made.shape[-2], made.shape[-1])))
            del made
        # A 1 x 1 convolution and interpolation may change places: the weights of each new cell add up to 1.
        projected: Tensor = self.projection(self.residual_layer2(fused))
        return projected


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
        hidden = conv_and_norm(maps.relu(), self.convolution1, self.batch_norm1).relu_()
        return add(conv_and_norm(hidden, self.convolution2, self.batch_norm2), maps)


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """maps: (B, C, h, w) -> (B, C, *size), corners on corners."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def add(made: Tensor, maps: Tensor) -> Tensor:
    """The sum, in place of `made`, which nobody else reads, where that doesn't change its type."""
    return made.add_(maps) if made.dtype == maps.dtype else made + maps


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
    bottom, right = rows - maps.shape[-2], columns - maps.shape[-1]
    # An exported graph pads always: asking whether it must would pin the sizes it was traced with.
    if not torch.compiler.is_exporting() and bottom == 0 and right == 0:
        return maps
    return F.pad(maps, (0, right, 0, bottom), mode="replicate")

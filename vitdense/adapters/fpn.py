"""The feature pyramid network: each level gets what the coarser ones know (https://arxiv.org/abs/1612.03144)."""

from itertools import pairwise

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.adapters.frames import over_frames
from vitdense.adapters.grids import check_pyramid, crop
from vitdense.contracts import ADAPTERS, Adapter, AdapterConfig, Level


@ADAPTERS.register("fpn")
class FPNConfig(AdapterConfig):
    """`channels` at every level of a pyramid; `extra_level` adds one of twice the coarsest stride."""

    channels: PositiveInt = 256
    extra_level: bool = False

    def build(self, levels: tuple[Level, ...]) -> Adapter:
        """A feature pyramid for two levels or more of growing stride."""
        check_pyramid("fpn", levels)
        return over_frames(FPN(self, levels), levels)


class FPN(Adapter):
    """1 x 1 convolutions, the coarser level added to the finer from the top down, 3 x 3 convolutions."""

    def __init__(self, config: FPNConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        width, strides = config.channels, [level.stride for level in levels]
        self.ratios = [coarse // fine for fine, coarse in pairwise(strides)]
        self.extra_level = config.extra_level
        if config.extra_level:
            strides.append(2 * strides[-1])
        self.levels = tuple(Level(width, stride) for stride in strides)
        self.inner_blocks = nn.ModuleList(nn.Conv2d(level.channels, width, kernel_size=1) for level in levels)
        self.layer_blocks = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in levels)
        self.apply(_init_weights)

    def forward(self, maps: list[Tensor], images: Tensor) -> list[Tensor]:
        """maps: (B, C_i, h_i, w_i), finest first -> [(B, channels, h_i, w_i)], and half the last if asked."""
        inner = [block(each) for block, each in zip(self.inner_blocks, maps, strict=True)]
        for i in range(len(inner) - 2, -1, -1):
            inner[i] = inner[i] + _spread(inner[i + 1], self.ratios[i], like=inner[i])
        outputs = [block(each) for block, each in zip(self.layer_blocks, inner, strict=True)]
        if self.extra_level:
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs


def _spread(maps: Tensor, ratio: int, *, like: Tensor) -> Tensor:
    """maps: (B, C, h, w) -> each cell repeated `ratio` x `ratio` times, cut to the size of `like`.

    Cells above cells: interpolate(size=...) is that too at a ratio of 2, but at others it stretches a coarse grid that
    reaches beyond the finer one's end.
    """
    return crop(F.interpolate(maps, scale_factor=float(ratio)), like.shape[-2], like.shape[-1])


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight, a=1)
        assert module.bias is not None
        nn.init.zeros_(module.bias)

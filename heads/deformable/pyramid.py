"""From a backbone's levels to the maps that Deformable DETR works on: of one width, normed, and with coarser ones."""

from torch import Tensor, nn

from vitdense.contracts import Level


class Pyramid(nn.ModuleList):
    """A 1 x 1 convolution for each level, and 3 x 3 ones of stride 2 for those beyond, the first on the coarsest level
    itself; group norm behind each."""

    def __init__(self, levels: tuple[Level, ...], channels: int, *, count: int) -> None:
        super().__init__(normed_conv(level.channels, channels, kernel_size=1) for level in levels)
        self.given = len(levels)
        width = levels[-1].channels
        for _ in range(count - len(levels)):
            self.append(normed_conv(width, channels, kernel_size=3))
            width = channels

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """features: (B, C_i, h_i, w_i), finest first -> (B, C, h_i, w_i), and those beyond the last."""
        maps = [project(each) for project, each in zip(list(self)[: self.given], features, strict=True)]
        last = features[-1]
        for halve in list(self)[self.given :]:
            last = halve(last)
            maps.append(last)
        return maps


def normed_conv(channels: int, out_channels: int, *, kernel_size: int) -> nn.Sequential:
    """A convolution of stride 1, or 2 where its kernel is larger than 1, and group norm."""
    stride = 1 if kernel_size == 1 else 2
    conv = nn.Conv2d(channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(32, out_channels))

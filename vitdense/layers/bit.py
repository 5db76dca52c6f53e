"""The ResNet under hybrid transformers: standardised weights, group norms (BiT, https://arxiv.org/abs/1912.11370)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.layers.block import runner

GROUPS = 32
STEM_STRIDE = 4
_EPS = 1e-8


class StdConv2d(nn.Conv2d):
    """A convolution whose filters are brought to mean 0 and deviation 1 (https://arxiv.org/abs/1903.10520).

    Padded as TensorFlow's SAME pads sizes that divide by the stride: an odd zero goes to the right and bottom.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int = 1) -> None:
        around = max(kernel - stride, 0)
        before, after = around // 2, around - around // 2
        padding = before if before == after else 0
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.pad = nn.Identity() if before == after else nn.ZeroPad2d((before, after, before, after))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W), H and W divisible by the stride -> (B, out_channels, H / stride, W / stride)."""
        # Layer norm would do the same in a third of the time. But sixteen blocks carry its other rounding from 1e-7 to
        # 1e-4, and timm and transformers take batch norm: with it our numbers are theirs to the last bit.
        filters = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        filters = filters.reshape(1, self.out_channels, -1)  # (1, out_channels, in_channels * kernel**2)
        standard = F.batch_norm(filters, None, None, training=True, momentum=0.0, eps=_EPS)
        weight = standard.reshape_as(self.weight).to(self.weight.dtype)
        out: Tensor = self._conv_forward(self.pad(maps), weight, None)
        return out


class Downsample(nn.Module):
    """The shortcut of a stage's first block: a 1x1 convolution and its norm."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv = StdConv2d(in_channels, out_channels, kernel=1, stride=stride)
        self.norm = nn.GroupNorm(GROUPS, out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> (B, out_channels, H / stride, W / stride)."""
        out: Tensor = self.norm(self.conv(maps))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions at a quarter of the width, added to the shortcut before the last ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, first: bool) -> None:
        super().__init__()
        inner = out_channels // 4
        self.downsample = Downsample(in_channels, out_channels, stride=stride) if first else nn.Identity()
        self.conv1 = StdConv2d(in_channels, inner, kernel=1)
        self.norm1 = nn.GroupNorm(GROUPS, inner)
        self.conv2 = StdConv2d(inner, inner, kernel=3, stride=stride)
        self.norm2 = nn.GroupNorm(GROUPS, inner)
        self.conv3 = StdConv2d(inner, out_channels, kernel=1)
        self.norm3 = nn.GroupNorm(GROUPS, out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> (B, out_channels, H / stride, W / stride)."""
        branch = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        branch = F.relu(self.norm2(self.conv2(branch)), inplace=True)
        branch = self.norm3(self.conv3(branch))
        return F.relu(branch + self.downsample(maps), inplace=True)


class BitStage(nn.Module):
    """Bottlenecks of one width, the first with the stride."""

    def __init__(self, in_channels: int, out_channels: int, *, depth: int, stride: int, recompute: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Bottleneck(
                in_channels if i == 0 else out_channels, out_channels, stride=stride if i == 0 else 1, first=i == 0
            )
            for i in range(depth)
        )
        self._run = runner(recompute)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> (B, out_channels, H / stride, W / stride)."""
        for block in self.blocks:
            maps = self._run(block, maps)
        return maps


class BitResNet(nn.Module):
    """A stem of stride 4 and a stage for each of `layers`; the first keeps the size, each other halves it.

    `width` is the stem's, stage i has 4 * width * 2**i channels. `recompute` keeps no activation within a block.
    """

    def __init__(self, in_channels: int, *, layers: tuple[int, ...], width: int = 64, recompute: bool = False) -> None:
        super().__init__()
        # With ceil_mode the pool looks one beyond the right and bottom of an even size, as SAME does.
        self.stem = nn.Sequential(
            OrderedDict(
                conv=StdConv2d(in_channels, width, kernel=7, stride=2),
                norm=nn.GroupNorm(GROUPS, width),
                act=nn.ReLU(inplace=True),
                pool=nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            )
        )
        self.channels = tuple(4 * width << i for i in range(len(layers)))
        self.strides = tuple(STEM_STRIDE << i for i in range(len(layers)))
        self.stages = nn.ModuleList(
            BitStage(before, after, depth=depth, stride=1 if i == 0 else 2, recompute=recompute)
            for i, (before, after, depth) in enumerate(
                zip((width, *self.channels), self.channels, layers, strict=False)
            )
        )

    def forward(self, images: Tensor, stages: int | None = None) -> list[Tensor]:
        """images: (B, C, H, W), divisible by the last stride -> [(B, C_i, H / s_i, W / s_i)]: the stem, each stage.

        Of the stages, the first `stages` are run.
        """
        maps = [self.stem(images)]
        for stage in self.stages[:stages]:
            maps.append(stage(maps[-1]))
        return maps

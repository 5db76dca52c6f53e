"""Convolutions of the hybrid encoder: RepVGG blocks in CSP layers as in RT-DETR, ELAN layers as in D-FINE.

RepVGG: Ding et al. 2021, https://arxiv.org/abs/2101.03697; GELAN: Wang et al. 2024, https://arxiv.org/abs/2402.13616.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.layers.folding import conv_and_norm, folded, folds
from vitdense.ops.minimal_filtering import conv3x3

Activation = Literal["relu", "gelu", "silu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Projection(nn.Sequential):
    """A convolution without bias and a batch norm."""

    def __init__(
        self, channels: int, out_channels: int, *, kernel_size: int = 1, stride: int = 1, eps: float = 1e-5
    ) -> None:
        padding = kernel_size // 2
        conv = nn.Conv2d(channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out_channels, eps=eps))

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))."""
        conv, norm = self
        assert isinstance(conv, nn.Conv2d)
        return conv_and_norm(maps, conv, norm)


class ConvNorm(nn.Module):
    """A convolution without bias, a batch norm, and an activation if there is one."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(
            channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=eps)
        self.activate = None if activation is None else ACTIVATIONS[activation]

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))."""
        out = conv_and_norm(maps, self.conv, self.norm)
        return out if self.activate is None else self.activate(out)


class RepVggBlock(nn.Module):
    """A 3 x 3 and a 1 x 1 convolution side by side, one 3 x 3 where their norms are frozen; the width stays."""

    def __init__(self, channels: int, *, activation: Activation, eps: float) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, kernel_size=3, eps=eps)
        self.conv2 = ConvNorm(channels, channels, kernel_size=1, eps=eps)
        self.activate = ACTIVATIONS[activation]

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> the same shape."""
        three, one = self.conv1, self.conv2
        if not (folds(maps, three.conv, three.norm) and folds(maps, one.conv, one.norm)):
            return self.activate(three(maps) + one(maps))
        weight, bias = folded(three.conv, three.norm)
        middle, offset = folded(one.conv, one.norm)
        return self.activate(conv3x3(maps, weight + F.pad(middle, (1, 1, 1, 1)), bias + offset))


class CspRepLayer(nn.Module):
    """Two ways through 1 x 1 convolutions, one of them through RepVGG blocks too, added."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        blocks: int,
        activation: Activation,
        eps: float,
        expansion: float = 1.0,
    ) -> None:
        super().__init__()
        inner = int(out_channels * expansion)
        self.conv1 = ConvNorm(channels, inner, activation=activation, eps=eps)
        self.conv2 = ConvNorm(channels, inner, activation=activation, eps=eps)
        self.bottlenecks = nn.Sequential(*(RepVggBlock(inner, activation=activation, eps=eps) for _ in range(blocks)))
        same = inner == out_channels
        self.conv3 = nn.Identity() if same else ConvNorm(inner, out_channels, activation=activation, eps=eps)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> (B, C_out, H, W)."""
        out: Tensor = self.conv3(self.bottlenecks(self.conv1(maps)) + self.conv2(maps))
        return out


class ElanLayer(nn.Module):
    """Halves of a wide map, one of them through two CSP layers one after the other; all four are joined."""

    def __init__(self, channels: int, *, expansion: float, blocks: int, activation: Activation, eps: float) -> None:
        super().__init__()
        inner = round(expansion * channels // 2)

        def conv(channels: int, out_channels: int, kernel_size: int) -> ConvNorm:
            return ConvNorm(channels, out_channels, kernel_size=kernel_size, activation="silu", eps=eps)

        def layer(channels: int) -> CspRepLayer:
            return CspRepLayer(channels, inner, blocks=blocks, activation=activation, eps=eps)

        self.conv1 = conv(2 * channels, 2 * channels, 1)
        self.csp_rep1 = layer(channels)
        self.conv2 = conv(inner, inner, 3)
        self.csp_rep2 = layer(inner)
        self.conv3 = conv(inner, inner, 3)
        self.conv4 = conv(2 * channels + 2 * inner, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, 2 * C, H, W) -> (B, C, H, W)."""
        wide = self.conv1(maps)
        once = self.conv2(self.csp_rep1(wide.chunk(2, dim=1)[1]))
        twice = self.conv3(self.csp_rep2(once))
        out: Tensor = self.conv4(torch.cat([wide, once, twice], dim=1))
        return out


class ScDown(nn.Module):
    """To a coarser map in two steps: a 1 x 1 convolution, then each channel by itself."""

    def __init__(self, channels: int, *, stride: int, eps: float) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, eps=eps)
        self.conv2 = ConvNorm(channels, channels, kernel_size=3, stride=stride, groups=channels, eps=eps)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.conv2(self.conv1(maps))
        return out

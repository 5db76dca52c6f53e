"""A batch norm behind a convolution, put into the convolution's weight where it is but a factor and an offset."""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from vitdense.layers.eager import is_bare, runs_eagerly
from vitdense.ops.minimal_filtering import conv3x3, pays


class FrozenNorm(Protocol):
    """A batch norm that changes no more."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float


def folds(maps: Tensor, conv: nn.Conv2d, norm: nn.Module) -> bool:
    """Whether to fold: where the norm is frozen, the weight is smaller than what comes out of maps (B, C, H, W), and
    nobody looks at what is between; that is then never made, nor kept for a backward pass.
    """
    return (
        runs_eagerly(maps, conv.weight)  # first, since a graph for any size must not ask for one
        and not norm.training
        and conv.weight[0].numel() <= len(maps) * maps.shape[-2] * maps.shape[-1]
        and is_bare(nn.Conv2d, conv)
        and conv.padding_mode == "zeros"
        and is_bare(nn.BatchNorm2d, norm)
    )


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The convolution's weight and bias with the norm in them, made for each call."""
    factor, offset = factor_and_offset(conv, norm)
    kind = conv.weight.dtype
    return (conv.weight * factor[:, None, None, None]).to(kind), offset.to(kind)


def factor_and_offset(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(C_out,) each: what a frozen norm makes of the convolution's output, its bias in the offset."""
    frozen = cast(FrozenNorm, norm)
    factor = frozen.weight * (frozen.running_var + frozen.eps).rsqrt()
    offset = -frozen.running_mean if conv.bias is None else conv.bias - frozen.running_mean
    return factor, frozen.bias + offset * factor


def conv_and_norm(maps: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """maps: (B, C, H, W) -> (B, C_out, H', W'), a tensor of its own that may be written to."""
    if folds(maps, conv, norm):
        if pays(maps, conv.weight):
            return norm_in_place(_convolve(maps, conv, conv.weight, None), conv, norm)
        return _convolve(maps, conv, *folded(conv, norm))
    if pays(maps, conv.weight) and is_bare(nn.Conv2d, conv) and conv.padding_mode == "zeros":
        out: Tensor = norm(_convolve(maps, conv, conv.weight, conv.bias))
    else:
        out = norm(conv(maps))
    return out


def conv_and_frozen_norm(maps: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """As `conv_and_norm`, of a norm that is known to be frozen: folded unless the weight is larger than what comes out,
    or has a faster way of its own; then what comes out is normed in place. Nothing between them is kept.
    """
    cells = len(maps) * maps.shape[-2] * maps.shape[-1] // (conv.stride[0] * conv.stride[1])
    large = runs_eagerly(maps, conv.weight) and conv.weight[0].numel() > cells
    if large or pays(maps, conv.weight):
        return norm_in_place(_convolve(maps, conv, conv.weight, None), conv, norm)
    return _convolve(maps, conv, *folded(conv, norm))


def norm_in_place(out: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """out: (B, C_out, H, W), the convolution's without its bias -> the same, normed: without a second weight."""
    factor, offset = (each[:, None, None].to(out.dtype) for each in factor_and_offset(conv, norm))
    return out.mul_(factor).add_(offset)


def _convolve(maps: Tensor, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> Tensor:
    """maps: (B, C, H, W) -> (B, C_out, H', W'), as `conv` would with another weight."""
    shape = (conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.groups)
    if shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1):
        return conv3x3(maps, weight, bias)
    return torch.conv2d(maps, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

"""A batch norm behind a convolution, put into the convolution's weight where it is but a factor and an offset."""

import torch
from torch import Tensor, nn

from vitdense.layers.eager import is_bare, runs_eagerly


def folds(maps: Tensor, conv: nn.Conv2d, norm: nn.Module) -> bool:
    """Whether to fold: where the norm is frozen, the weight is smaller than what comes out of maps (B, C, H, W), and
    nobody looks at what is between; that is then never made, nor kept for a backward pass.
    """
    return (
        runs_eagerly(maps, conv.weight)  # first, since a graph for any size must not ask for one
        and not norm.training
        and conv.weight[0].numel() <= len(maps) * maps.shape[-2] * maps.shape[-1]
        and is_bare(nn.Conv2d, conv)
        and is_bare(nn.BatchNorm2d, norm)
    )


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The convolution's weight and bias with the norm in them, made for each call."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    kind = conv.weight.dtype
    offset = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    weight, bias = conv.weight * factor[:, None, None, None], norm.bias + offset * factor
    return weight.to(kind), bias.to(kind)


def conv_and_norm(maps: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """maps: (B, C, H, W) -> (B, C_out, H', W'), a tensor of its own that may be written to."""
    if folds(maps, conv, norm):
        weight, bias = folded(conv, norm)
        return torch.conv2d(maps, weight, bias, conv.stride, conv.padding, conv.dilation)
    out: Tensor = norm(conv(maps))
    return out

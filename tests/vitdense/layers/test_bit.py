"""The ResNet under hybrids: filters standardised, padded as SAME, and in whole as timm's."""

from typing import Any

import pytest
import timm
import torch
from timm.layers.std_conv import StdConv2dSame
from torch import Tensor, nn

from vitdense.layers.bit import BitResNet, StdConv2d


def enliven(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(float(parameter.ndim == 1) + 0.12 * torch.randn(parameter.shape))
    return module.eval()


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the reference's mean size where that is above one."""
    assert ours.shape == theirs.shape
    assert theirs.abs().mean() > 0.3, "the reference carries no signal"
    return float((ours - theirs).abs().max() / theirs.abs().mean().clamp(min=1))


def test_filters_are_brought_to_mean_zero_and_deviation_one() -> None:
    torch.manual_seed(0)
    conv = StdConv2d(6, 5, kernel=3).double()
    flat = conv.weight.flatten(1)
    standard = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-8).sqrt()
    maps = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    expected = nn.functional.conv2d(maps, standard.view_as(conv.weight), padding=1)
    torch.testing.assert_close(conv(maps), expected)


@torch.no_grad()
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_that_of_same(kernel: int, stride: int) -> None:
    theirs = enliven(StdConv2dSame(4, 6, kernel, stride=stride, eps=1e-8))
    ours = StdConv2d(4, 6, kernel=kernel, stride=stride)
    ours.load_state_dict(theirs.state_dict())
    maps = torch.randn(2, 4, 6, 10)
    torch.testing.assert_close(ours(maps), theirs(maps))


@torch.no_grad()
def test_sixteen_bit_filters_are_standardised_in_single_precision() -> None:
    torch.manual_seed(0)
    half = StdConv2d(256, 4, kernel=1).bfloat16()
    half.weight.add_(4.0)  # the mean is far from 0, where 16 bits are coarse
    single = StdConv2d(256, 4, kernel=1)
    single.load_state_dict(half.state_dict())
    each_input = torch.eye(256).view(256, 256, 1, 1)
    assert torch.equal(half(each_input.bfloat16()), single(each_input).bfloat16())


@torch.no_grad()
def test_autocast_leaves_the_filters_in_single_precision() -> None:
    torch.manual_seed(0)
    conv = StdConv2d(256, 4, kernel=1)
    conv.weight.add_(4.0)
    each_input = torch.eye(256).view(256, 256, 1, 1)
    expected = conv(each_input).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(each_input), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "layers"), [("vit_base_r50_s16_224", (3, 4, 9)), ("vit_small_r26_s32_224", (2, 2, 2, 2))]
)
@pytest.mark.parametrize(("precision", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_every_map_equals_timms(name: str, layers: tuple[int, ...], precision: torch.dtype, bound: float) -> None:
    hybrid: Any = timm.create_model(name, embed_dim=48, depth=1, num_heads=3)
    theirs: Any = enliven(hybrid.patch_embed.backbone).to(precision)
    ours = BitResNet(3, layers=layers).to(precision)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96, dtype=precision)
    stem, *maps = ours(images)
    assert apart(stem, theirs.stem(images)) < bound
    expected = theirs.forward_intermediates(images, indices=[1, 2, 3, 4][: len(layers)], intermediates_only=True)
    for each, their in zip(maps, expected, strict=True):
        assert apart(each, their) < bound


def test_strides_and_channels_are_true_and_a_stem_may_stand_alone() -> None:
    backbone = BitResNet(1, layers=(1, 2, 1), width=32)
    _, *maps = backbone(torch.randn(2, 1, 32, 64))
    assert backbone.channels == (128, 256, 512)
    assert [each.shape[1] for each in maps] == [128, 256, 512]
    assert [32 // each.shape[2] for each in maps] == list(backbone.strides) == [4, 8, 16]
    assert [tuple(each.shape) for each in BitResNet(3, layers=())(torch.randn(1, 3, 32, 64))] == [(1, 64, 8, 16)]


def test_recomputing_gives_equal_gradients() -> None:
    images, gradients = torch.randn(2, 3, 32, 32, dtype=torch.float64), []
    for recompute in (False, True):
        torch.manual_seed(0)
        backbone = BitResNet(3, layers=(1, 2), width=32, recompute=recompute).double()
        total = torch.stack([each.square().mean() for each in backbone(images)]).sum()
        gradients.append(torch.autograd.grad(total, list(backbone.parameters())))
    torch.testing.assert_close(gradients[0], gradients[1])

"""Frozen batch norms, folded, against the unfolded: outputs, gradients of the convolutions, and names."""

import copy

import pytest
import torch
from torch import nn

from vitdense import create_backbone


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", ["timm/resnet18", "timm/regnetx_002"])
def test_maps_and_gradients_equal_the_unfolded(name: str, dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    plain, frozen = create_backbone(name), create_backbone(name, frozen_norm=True)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
    frozen.load_state_dict(plain.state_dict())
    plain, frozen = plain.to(dtype).eval(), copy.deepcopy(frozen).to(dtype).train()
    assert frozen.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 3, 65, 97, dtype=dtype)
    given, expected = frozen(images), plain(images)
    for ours, theirs in zip(given, expected, strict=True):
        assert (ours - theirs).abs().max() < bound * theirs.abs().max()
    if dtype is torch.float32:
        return  # values next to a ReLU's edge fall to either side of it: gradients are compared in double precision
    grown = {}
    for key, maps, network in (("ours", given, frozen), ("theirs", expected, plain)):
        convs = [each.weight for each in network.modules() if isinstance(each, nn.Conv2d)]
        total = torch.stack([each.square().mean() for each in maps]).sum()
        grown[key] = torch.autograd.grad(total, convs)
    for ours, theirs in zip(grown["ours"], grown["theirs"], strict=True):
        assert (ours - theirs).abs().max() < bound * theirs.abs().max()

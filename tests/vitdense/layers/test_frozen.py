"""Frozen norms, folded into their convolutions, against batch norms in eval mode: outputs, gradients, names."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitdense
from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.layers.frozen import FoldedConv2d, FrozenBatchNorm2d, freeze_norms

TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
CHANNELS = 6


def alive(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Statistics that are not 0 and 1, an affine part that does something, and weights that keep signals alive."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.ndim == 4:
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
            else:
                tensor.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
    return model.eval().to(dtype)


def picture(height: int, width: int, dtype: torch.dtype, channels: int = CHANNELS) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)


def frozen(model: Any, images: Tensor) -> Any:
    twin = deepcopy(model)
    freeze_norms(twin, lambda: twin(images))
    return twin


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the reference's mean size where that is above one."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().mean().clamp(min=1))


def convolution(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, **{"kernel_size": 3, "padding": 1, "bias": False, **options})


def pair(**options: Any) -> nn.Sequential:
    return nn.Sequential(convolution(**options), nn.BatchNorm2d(CHANNELS, eps=1e-3), nn.ReLU(inplace=True))


class Shared(nn.Module):
    """One convolution, run twice, before two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = convolution(), nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.two(self.conv(self.one(self.conv(maps)).relu()))
        return out


class Branched(nn.Module):
    """What one convolution gives goes to two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = convolution(), nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)

    def forward(self, maps: Tensor) -> Tensor:
        both = self.conv(maps)
        out: Tensor = self.one(both) + self.two(both).relu()
        return out


def plain(*options: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(*(pair(**each) for each in options))


# A network, and how many of its convolutions do the work of a norm.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "two": (lambda: plain({}, {}), 2),
    "with bias": (lambda: plain({"bias": True}), 1),
    "strided, dilated, in groups": (
        lambda: plain({"stride": 2}, {"dilation": 2, "padding": 2}, {"groups": 3}, {"kernel_size": 1, "padding": 0}),
        4,
    ),
    "padded by mirrors": (lambda: plain({"padding_mode": "reflect"}, {}), 1),
    "a norm first": (lambda: nn.Sequential(nn.BatchNorm2d(CHANNELS), pair()), 1),
    "something between": (lambda: nn.Sequential(convolution(), nn.GELU(), nn.BatchNorm2d(CHANNELS)), 0),
    "a norm without an affine part": (
        lambda: nn.Sequential(convolution(), nn.BatchNorm2d(CHANNELS, affine=False)),
        1,
    ),
    "one convolution, two norms": (Shared, 0),
    "two norms of one output": (Branched, 0),
}


@pytest.mark.parametrize(("dtype", "bound"), TOLERANCES)
@pytest.mark.parametrize("size", [(13, 9), (2, 1)])  # the weight is smaller than what comes out, and larger
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_equal_batch_norms_in_eval_mode(
    name: str, size: tuple[int, int], dtype: torch.dtype, bound: float
) -> None:
    if name == "padded by mirrors" and min(size) < 2:
        size = (3, 2)
    make, count = NETWORKS[name]
    theirs = alive(make(), dtype)
    images = picture(*size, dtype)
    ours = frozen(theirs, images)
    assert sum(isinstance(each, FoldedConv2d) for each in ours.modules()) == count
    assert not any(isinstance(each, nn.BatchNorm2d) for each in ours.modules())
    given, wanted = images.clone().requires_grad_(), images.clone().requires_grad_()
    found, expected = ours(given), theirs(wanted)
    assert expected.std() > 0.1
    assert apart(found, expected) < bound
    weights = picture(found.shape[-2], found.shape[-1], dtype)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert given.grad is not None
    assert wanted.grad is not None
    assert apart(given.grad, wanted.grad) < bound
    gradients = {key: each.grad for key, each in theirs.named_parameters()}
    learned = dict(ours.named_parameters())
    assert learned.keys() == {key for key in gradients if gradients[key] is not None and gradients[key].ndim > 1} | {
        key for key in gradients if key.endswith("0.bias") and "bias" in name
    }
    for key, parameter in learned.items():
        assert apart(parameter.grad, gradients[key]) < bound, key


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), TOLERANCES)
def test_a_large_map_is_normed_after_its_faster_convolution(dtype: torch.dtype, bound: float) -> None:
    theirs = alive(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)), dtype)
    images = picture(57, 66, dtype, channels=64)
    assert apart(frozen(theirs, images)(images), theirs(images)) < bound


def test_the_state_keeps_its_names_and_goes_both_ways() -> None:
    theirs = alive(plain({}, {"bias": True}))
    images = picture(7, 8, torch.float32)
    ours = frozen(plain({}, {"bias": True}).eval(), images)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    assert apart(ours(images), theirs(images)) < 1e-5
    back = plain({}, {"bias": True}).eval()
    back.load_state_dict(ours.state_dict())
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key


def test_training_changes_nothing_but_convolutions() -> None:
    theirs = alive(plain({}, {}))
    images = picture(7, 8, torch.float32)
    ours = frozen(theirs, images).train()
    assert apart(ours(images), theirs(images)) < 1e-5
    optimiser = torch.optim.SGD(ours.parameters(), lr=0.1)
    before = {key: each.clone() for key, each in ours.state_dict().items()}
    ours(images).square().mean().backward()
    optimiser.step()
    changed = {key for key, each in ours.state_dict().items() if not torch.equal(each, before[key])}
    assert changed == {"0.0.weight", "1.0.weight"}
    theirs.load_state_dict(ours.state_dict())
    assert apart(ours(images), theirs(images)) < 1e-5  # the norm goes into the weight that was learned


def test_a_copy_folds_its_own_norms() -> None:
    theirs = alive(plain({}))
    images = picture(7, 8, torch.float32)
    ours = frozen(theirs, images)
    twin = deepcopy(ours)
    with torch.no_grad():
        ours[0][1].bias.add_(1.0)
    assert apart(twin(images), theirs(images)) < 1e-5
    assert apart(ours(images), theirs(images)) > 0.1


# ---------------------------------------------------------------- networks of other libraries

# ResNet-50's blocks, of few channels.
THIN_TIMM: Any = {"config": {"channels": (4, 6, 8, 10), "stem_width": 4}}
THIN_HF: Any = {"config": {"depths": [3, 4, 6, 3], "hidden_sizes": [16, 24, 32, 40], "embedding_size": 8}}
# A backbone, its options, and how many norms it has, of which all are folded.
BACKBONES: dict[str, tuple[str, dict[str, Any], int]] = {
    "timm, ResNet-50": ("timm/resnet50", THIN_TIMM, 53),
    "timm, blocks of two": ("timm/resnet18", THIN_TIMM, 21),
    "timm, norms with activations": ("timm/mobilenetv2_035", {}, 52),
    "hf, ResNet-50": ("hf/resnet", THIN_HF, 53),
    "hf, RT-DETR's": (
        "hf/rt_detr_resnet",
        {"config": {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 24, 32, 40], "embedding_size": 8}},
        22,
    ),
}


def both(name: str, options: dict[str, Any], dtype: torch.dtype) -> tuple[Backbone, Backbone]:
    """With frozen norms and with batch norms, of the same weights."""
    theirs = alive(vitdense.create_backbone(name, **options), dtype)
    ours = vitdense.create_backbone(name, **options, frozen_norm=True).to(dtype)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_equal_those_with_batch_norms(name: str) -> None:
    title, options, count = BACKBONES[name]
    ours, theirs = both(title, options, torch.float64)
    ours.train()
    norms = [each for each in ours.modules() if isinstance(each, FrozenBatchNorm2d)]
    assert len(norms) == sum(isinstance(each, nn.BatchNorm2d) for each in theirs.modules()) == count
    assert all(each.folded for each in norms)
    images = picture(75, 94, torch.float64, channels=3)
    found, expected = ours(images), theirs(images)
    for given, wanted in zip(found, expected, strict=True):
        assert wanted.std() > 0.01
        assert apart(given, wanted) < 1e-9
    torch.autograd.backward(torch.stack([each.square().mean() for each in found]).sum())
    torch.autograd.backward(torch.stack([each.square().mean() for each in expected]).sum())
    gradients: Any = {key: each.grad for key, each in theirs.named_parameters()}
    learned = dict(ours.named_parameters())
    assert learned.keys() == {key for key, each in theirs.named_parameters() if each.ndim > 1}
    for key, parameter in learned.items():
        assert (parameter.grad is None) == (gradients[key] is None)
        if parameter.grad is not None:
            assert apart(parameter.grad, gradients[key]) < 1e-9, key
    assert apart(ours.embed(images), theirs.embed(images)) < 1e-9


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/resnet50"])
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    ours, theirs = both(name, THIN_TIMM, torch.float64)
    again = vitdense.create_backbone(name, **THIN_TIMM, frozen_norm=True, grad_checkpointing=True).double().train()
    again.load_state_dict(ours.state_dict())
    images = picture(64, 96, torch.float64, channels=3)
    gradients: list[dict[str, Any]] = []
    for model in (again, theirs):
        torch.autograd.backward(torch.stack([each.square().mean() for each in model(images)]).sum())
        gradients.append({key: each.grad for key, each in model.named_parameters() if each.ndim > 1})
    for key, gradient in gradients[0].items():
        assert apart(gradient, gradients[1][key]) < 1e-9, key


@torch.no_grad()
def test_a_backbone_of_single_precision_stays_close_at_its_full_depth() -> None:
    ours, theirs = both("timm/resnet50", THIN_TIMM, torch.float32)
    images = picture(75, 94, torch.float32, channels=3)
    for given, wanted in zip(ours(images), theirs.double()(images.double()), strict=True):
        assert apart(given, wanted.float()) < 1e-5


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "hf/convnext"])
def test_networks_without_batch_norms_refuse_to_freeze_them(name: str) -> None:
    options: Any = {"config": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8]}} if name == "hf/convnext" else {}
    with pytest.raises(UserError, match="has no batch norm: leave frozen_norm out"):
        vitdense.create_backbone(name, **options, frozen_norm=True)

"""What holds for every registered backbone: true levels at any size, gradients everywhere, the common options."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitdense.backbones import SwinConfig, VideoViTConfig, ViTConfig
from vitdense.contracts import BACKBONES, Backbone, BackboneConfig
from vitdense.errors import UserError

Shrink = Callable[[str], BackboneConfig]
OWN = [
    name
    for name in BACKBONES.names()
    if issubclass(BACKBONES.find(name)[0], ViTConfig | SwinConfig)
    and not issubclass(BACKBONES.find(name)[0], VideoViTConfig)
]
NANO = ("vit_nano_patch8", "vit_nano_r_s16", "swin_nano", "swinv2_nano")
HEAVY_PACKAGES = {"timm", "torchvision", "lightning", "albumentations", "pycocotools"}


def promised(backbone: Backbone, images: Tensor) -> list[tuple[int, ...]]:
    height, width = images.shape[-2:]
    return [
        (images.shape[0], level.channels, -(-height // level.stride), -(-width // level.stride))
        for level in backbone.levels
    ]


def total(maps: list[Tensor]) -> Tensor:
    return torch.stack([each.square().mean() for each in maps]).sum()


@torch.no_grad()
@pytest.mark.parametrize("name", OWN)
def test_levels_are_true_at_full_width(name: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES.create(name).build()
        images = torch.empty(1, 3, 250, 333)
        assert [tuple(each.shape) for each in backbone(images)] == promised(backbone, images)
    assert len(backbone.levels) == 4


@pytest.mark.parametrize("size", [(224, 224), (250, 333), (64, 96)])
@pytest.mark.parametrize("name", OWN)
def test_maps_are_as_promised_and_gradients_finite(name: str, size: tuple[int, int], shrink: Shrink) -> None:
    torch.manual_seed(0)
    backbone = shrink(name).build()
    images = torch.randn(1, 3, *size)
    maps = backbone(images)
    assert [tuple(each.shape) for each in maps] == promised(backbone, images)
    torch.autograd.backward(total(maps))
    unused = backbone.unused_in_maps()
    for parameter_name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (parameter_name in unused), parameter_name
        assert parameter.grad is None or parameter.grad.isfinite().all(), parameter_name
        assert 0 <= backbone.layer_of(parameter_name) <= backbone.num_layers


@pytest.mark.parametrize("name", OWN)
def test_what_maps_leave_unused_serves_the_embedding(name: str, shrink: Shrink) -> None:
    torch.manual_seed(0)
    backbone = shrink(name).build()
    vector = backbone.embed(torch.randn(2, 3, 75, 98))
    assert vector.shape == (2, backbone.embed_dim)
    torch.autograd.backward(vector.square().sum())
    for parameter_name in backbone.unused_in_maps():
        assert backbone.get_parameter(parameter_name).grad is not None, parameter_name


@torch.no_grad()
@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("size", [(224, 224), (250, 333), (64, 96), (9, 8), (3, 2)])
def test_tokens_and_embed_agree_with_the_last_map(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES.create(name, {"norm_maps": True}).build().eval()
    images = torch.randn(2, 3, *size)
    maps, tokens = backbone(images), backbone.tokens(images)
    assert tokens.grid == maps[-1].shape[2:]
    assert torch.equal(tokens.patches, maps[-1].flatten(2).mT)
    assert backbone.embed(images).shape == (2, backbone.embed_dim)


@torch.no_grad()
@pytest.mark.parametrize("name", NANO)
def test_pictures_of_a_batch_do_not_mix(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES.create(name).build().eval()
    images = torch.randn(3, 3, 90, 70)
    together = backbone(images)
    for i in range(3):
        for alone, each in zip(backbone(images[i : i + 1]), together, strict=True):
            torch.testing.assert_close(alone[0], each[i])


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("channels", [1, 4])
def test_other_input_channels(name: str, channels: int) -> None:
    backbone = BACKBONES.create(name, {"in_channels": channels}).build()
    assert len(backbone(torch.randn(1, channels, 33, 40))) == 4
    assert len(backbone.mean) == len(backbone.std) == channels
    with pytest.raises(UserError, match=rf"expected images \(B, {channels}, H, W\), given \(1, 3, 33, 40\)"):
        backbone(torch.randn(1, 3, 33, 40))


@pytest.mark.parametrize("name", NANO)
def test_drop_path_acts_in_training_only(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES.create(name, {"drop_path": 0.8}).build()
    images = torch.randn(2, 3, 64, 64)
    assert not torch.equal(backbone(images)[-1], backbone(images)[-1])
    backbone.eval()
    assert torch.equal(backbone(images)[-1], backbone(images)[-1])


@pytest.mark.parametrize(
    ("name", "frozen"), [("vit_nano_patch8", 3), ("vit_nano_r_s16", 3), ("swin_nano", 2), ("swin_nano", 5)]
)
def test_frozen_stages_have_no_gradient_and_stay_in_eval(name: str, frozen: int) -> None:
    backbone = BACKBONES.create(name, {"frozen_stages": frozen, "drop_path": 0.5}).build().train()
    parts: Any = backbone.blocks if name.startswith("vit") else backbone.layers
    for i, part in enumerate(parts):
        still = i < frozen - 1
        assert all(parameter.requires_grad is not still for parameter in part.parameters())
        assert all(module.training is not still for module in part.modules())
    assert not any(p.requires_grad for key, p in backbone.named_parameters() if backbone.layer_of(key) == 0)
    assert backbone.training


@pytest.mark.parametrize("name", NANO)
def test_nothing_is_frozen_unasked(name: str) -> None:
    assert all(parameter.requires_grad for parameter in BACKBONES.create(name).build().parameters())


@pytest.mark.parametrize("name", NANO)
def test_no_decay_names_tables_and_tokens(name: str) -> None:
    backbone = BACKBONES.create(name).build()
    named = {each.rpartition(".")[2] for each in backbone.no_decay()}
    wanted = {
        "vit": {"pos_embed", "cls_token"},
        "swin": {"relative_position_bias_table"},
        "swinv2": {"logit_scale", "weight", "bias"},
    }
    assert named == wanted[name.partition("_")[0]]
    assert backbone.no_decay() <= {key for key, _ in backbone.named_parameters()}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin_nano", {"out_indices": (1, 4)}, r"out_indices \[1, 4\]: give increasing indices from -4 to 3"),
        ("vit_nano_patch8", {"out_indices": (2, 1)}, "increasing indices from -4 to 3"),
        ("vit_nano_patch8", {"out_indices": ()}, "increasing indices"),
        ("swin_nano", {"frozen_stages": 6}, "frozen_stages 6: this backbone has 5"),
        ("swin_nano", {"mean": (0.5, 0.5)}, "mean has 2 values for 3 input channels"),
        ("swin_nano", {"num_heads": (1, 2, 3, 8)}, "stage 2: 128 channels don't divide by 3 heads"),
        ("swin_nano", {"depths": (1, 1)}, "depths has 2 stages and num_heads 4"),
        ("vit_nano_patch8", {"num_heads": 5}, "embed_dim 64 doesn't divide by num_heads 5"),
        ("vit_nano_patch8", {"cls_token": False}, 'pool "cls" needs cls_token'),
        ("vit_nano_patch8", {"image_size": 4}, "image_size 4 is smaller than patch_size 8"),
        ("vit_nano_r_s16", {"out_indices": (0, 7)}, "increasing indices from -7 to 6"),
        ("vit_nano_r_s16", {"patch_size": 24}, "patch_size 24 doesn't divide by 16, the ResNet's stride"),
        ("vit_nano_r_s16", {"stem": "conv"}, 'the stem of a hybrid is its ResNet: leave "stem" out, given "conv"'),
        ("vit_nano_r_s16", {"stem_width": 48}, "multiple of 32"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BACKBONES.create(name, options).build()


def test_fewer_outputs_run_fewer_stages() -> None:
    backbone = BACKBONES.create("swin_nano", {"out_indices": (0, -3)}).build()
    assert [level.stride for level in backbone.levels] == [4, 8]
    calls: list[nn.Module] = []
    layers: Any = backbone.layers
    for stage in layers:
        stage.register_forward_hook(lambda module, *_: calls.append(module))
    backbone(torch.randn(1, 3, 32, 32))
    assert len(calls) == 2


def test_own_backbones_load_no_heavy_package() -> None:
    code = (
        "import sys; from vitdense.contracts import BACKBONES\n"
        f"for name in {NANO!r}: BACKBONES.create(name).build()\n"
        f"print(sorted({HEAVY_PACKAGES!r} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"

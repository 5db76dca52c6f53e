"""timm's networks behind our contract: true levels at any size, aligned with the picture, clear refusals."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from vitdense.contracts import BACKBONES, Backbone
from vitdense.errors import UserError
from vitdense.weights import load_weights, read_weights

NAMES = (
    "resnet18",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mobilenetv3_small_050",
    "vit_tiny_r_s16_p8_224",
)


def build(name: str, **options: Any) -> Backbone:
    return BACKBONES.create(f"timm/{name}", options).build().eval()


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_levels_are_true_at_any_size(name: str) -> None:
    backbone = build(name)
    for height, width in ((224, 224), (250, 333), (64, 96)):
        images = torch.randn(1, 3, height, width)
        promised = [(1, each.channels, -(-height // each.stride), -(-width // each.stride)) for each in backbone.levels]
        assert [tuple(each.shape) for each in backbone(images)] == promised
    tokens = backbone.tokens(images)
    assert tokens.patches.shape[1] == tokens.grid[0] * tokens.grid[1]
    assert backbone.embed(images).shape == (1, backbone.embed_dim)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_cell_answers_to_its_own_pixels(name: str) -> None:
    torch.manual_seed(0)
    backbone = build(name, out_indices=(1,))
    stride = backbone.levels[0].stride
    images = torch.randn(1, 3, 250, 333)
    before = backbone(images)[0]
    for row, column in ((1, 2), (before.shape[2] - 2, before.shape[3] - 2)):
        touched = images.clone()
        top, left = row * stride, column * stride
        touched[..., top : top + stride, left : left + stride] += 20.0
        change = (backbone(touched)[0] - before).abs().sum(1)[0]
        centre = centre_of(change.square().square())
        assert abs(centre[0] - row) < 1.0, (centre, row)
        assert abs(centre[1] - column) < 1.0, (centre, column)


def centre_of(weights: Tensor) -> tuple[float, float]:
    rows, columns = weights.sum(1), weights.sum(0)
    at = [float((each * torch.arange(len(each))).sum() / each.sum()) for each in (rows, columns)]
    return at[0], at[1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_maps_are_timms_own_from_its_weights(name: str) -> None:
    theirs: Any = timm.create_model(name).eval()
    config = BACKBONES.create(f"timm/{name}")
    backbone = config.build().eval()
    weights = read_weights(theirs.state_dict(), config)
    report = load_weights(backbone, weights)
    assert all(key.startswith(("head.", "fc.")) for key in report.left_out)
    assert report.left_out
    assert backbone.mean == tuple(theirs.pretrained_cfg["mean"]) == weights.options["mean"]
    images = torch.randn(1, 3, 224, 224)
    norm = name.startswith("vit")
    expected = theirs.forward_intermediates(images, norm=norm, output_fmt="NCHW", intermediates_only=True)
    torch.testing.assert_close(backbone(images)[-1], expected[-1])


def test_layers_drop_path_and_channels_are_timms() -> None:
    backbone = build("vit_tiny_patch16_224", in_channels=4, drop_path=0.2, out_indices=(3, -1))
    assert backbone.layer_of("model.patch_embed.proj.weight") == 0
    assert backbone.layer_of("model.norm.weight") == backbone.num_layers
    assert backbone.no_decay() == {"model.pos_embed", "model.cls_token"}
    assert len(backbone(torch.randn(1, 4, 40, 50))) == 2
    assert len(backbone.mean) == 4
    assert any(type(each).__name__ == "DropPath" for each in backbone.modules())


def test_three_channel_weights_fit_other_channels() -> None:
    config = BACKBONES.create("timm/resnet18", {"in_channels": 4})
    backbone = config.build()
    report = load_weights(backbone, read_weights(timm.create_model("resnet18").state_dict(), config))
    assert report.adapted == ("model.conv1.weight",)


def test_recomputing_gives_equal_gradients() -> None:
    torch.manual_seed(0)
    plain = build("vit_tiny_patch16_224", out_indices=(1,))
    again = build("vit_tiny_patch16_224", out_indices=(1,), grad_checkpointing=True)
    again.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64)
    gradients = []
    for backbone in (plain, again):
        backbone(images)[0].square().mean().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "did you mean timm/resnet18"),
        ("levit_128s", {}, "takes pictures of 224 x 224 only"),
        ("crossvit_9_240", {}, "not a map of one whole stride"),
        ("resnet18", {"frozen_stages": 1}, "frozen_stages must be 0"),
        ("resnet18", {"out_indices": (9,)}, "increasing indices from -5 to 4"),
        ("dla46_c", {"drop_path": 0.1}, "refuses .*drop_path_rate"),
        ("dla46_c", {"grad_checkpointing": True}, "no gradient checkpointing"),
    ],
)
def test_refusals_say_why(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, **options)


def test_default_weights_without_network_say_how_to_go_on() -> None:
    with pytest.raises(UserError, match="timm can't fetch its weights for 'resnet18'"):
        read_weights("default", BACKBONES.create("timm/resnet18"))

"""Picture backbones on clips: every frame's maps are the picture's own, and mixing over time starts as nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vitdense
from vitdense.contracts import BACKBONES, Level
from vitdense.errors import UserError
from vitdense.weights import save_pretrained

NAMES = ["vit_nano_patch8", "swin_nano", "vit_nano_r_s16", "timm/resnet18"]


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_each_frame_has_the_pictures_maps(name: str) -> None:
    torch.manual_seed(0)
    clips = torch.randn(2, 3, 3, 75, 98)
    backbone: Any = vitdense.create_backbone(f"per_frame/{name}").eval()
    picture = backbone.backbone
    assert backbone.levels == tuple(Level(level.channels, level.stride, 1) for level in picture.levels)
    maps, vector = backbone.maps_and_vector(clips)
    tokens = backbone.tokens(clips)
    vectors = []
    for time in range(3):
        for each, expected in zip(maps, picture(clips[:, :, time]), strict=True):
            torch.testing.assert_close(each[:, :, time], expected, atol=1e-5, rtol=1e-5)
        alone = picture.tokens(clips[:, :, time])
        assert tokens.grid == (3, *alone.grid)
        found = tokens.patches.unflatten(1, (3, -1))[:, time]
        torch.testing.assert_close(found, alone.patches, atol=1e-5, rtol=1e-5)
        vectors.append(picture.embed(clips[:, :, time]))
    torch.testing.assert_close(vector, torch.stack(vectors).mean(0), atol=1e-5, rtol=1e-5)
    for each, expected in zip(backbone(clips), maps, strict=True):
        torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-5)


def test_weights_are_the_picture_backbones_own() -> None:
    torch.manual_seed(0)
    picture = vitdense.create_backbone("vit_nano_patch8", in_channels=4)
    backbone: Any = vitdense.create_backbone("per_frame/vit_nano_patch8", weights=picture.state_dict(), in_channels=4)
    assert backbone.load_report.left_out == ()
    assert all(torch.equal(each, backbone.backbone.state_dict()[key]) for key, each in picture.state_dict().items())
    assert len(backbone.mean) == 4


@torch.no_grad()
def test_the_config_holds_what_the_weights_brought(tmp_path: Path) -> None:
    """A run is built again from its recipe, without the file that said how its backbone was made."""
    picture = vitdense.create_backbone("vit_nano_patch8", layer_norm_eps=0.1, activation="quick_gelu")
    save_pretrained(picture, tmp_path, names="transformers")
    backbone: Any = vitdense.create_backbone("per_frame/vit_nano_patch8", weights=tmp_path, temporal_depth=1).eval()
    assert backbone.config.options["layer_norm_eps"] == 0.1
    again: Any = BACKBONES.create(backbone.config.preset, backbone.config.model_dump(mode="json")).build().eval()
    again.load_state_dict(backbone.state_dict())
    clips = torch.randn(1, 3, 2, 33, 40)
    assert torch.equal(again(clips)[-1], backbone(clips)[-1])


def test_mixing_starts_as_nothing_and_then_sees_other_times() -> None:
    torch.manual_seed(0)
    backbone: Any = vitdense.create_backbone("per_frame/swin_nano", temporal_depth=2).eval()
    clips = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        plain = backbone.backbone(clips[:, :, 1])
        for each, expected in zip(backbone(clips), plain, strict=True):
            torch.testing.assert_close(each[:, :, 1], expected, atol=1e-5, rtol=1e-5)
        for name, parameter in backbone.named_parameters():
            if "mixer" in name and ".proj." in name:
                parameter.normal_(std=0.1)
        changed = torch.cat([clips[:, :, :3], clips[:, :, 3:] + 1], dim=2)
        for each, other in zip([*backbone(clips)], [*backbone(changed)], strict=True):
            assert not torch.allclose(each[:, :, 0], other[:, :, 0], atol=1e-4)
        back = backbone(clips.flip(2))[0].flip(2)
        assert not torch.allclose(back, backbone(clips)[0], atol=1e-4), "the order of times is not told"
    torch.autograd.backward([each.square().mean() for each in backbone(clips)])
    unused = backbone.unused_in_maps()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (name in unused), name
        assert 0 <= backbone.layer_of(name) <= backbone.num_layers
    torch.autograd.backward(backbone.embed(clips).square().sum())
    assert all(backbone.get_parameter(name).grad is not None for name in unused)


@torch.no_grad()
def test_a_pyramid_of_clips() -> None:
    clips = torch.randn(1, 3, 3, 75, 98)
    for name, time in (("per_frame/vit_nano_patch8", 1), ("vivit_nano_patch8", 2)):
        backbone = vitdense.create_backbone(name, adapter={"name": "simple_pyramid", "channels": 8}).eval()
        assert backbone.levels == tuple(Level(8, stride, time) for stride in (4, 8, 16, 32))
        for level, each in zip(backbone.levels, backbone(clips), strict=True):
            assert each.shape == (1, 8, -(-3 // time), -(-75 // level.stride), -(-98 // level.stride))


@pytest.mark.parametrize("clips", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 2, 8, 8), torch.zeros(1, 3, 0, 8, 8)])
def test_what_is_no_clip_is_refused(clips: torch.Tensor) -> None:
    with pytest.raises(UserError, match="expected clips"):
        vitdense.create_backbone("per_frame/vit_nano_patch8")(clips)


def test_faults_are_named() -> None:
    with pytest.raises(UserError, match="no backbone named 'vit_nanu'"):
        vitdense.create_backbone("per_frame/vit_nanu")
    with pytest.raises(UserError, match="per_frame takes picture backbones, and vivit_nano_patch8 takes clips"):
        vitdense.create_backbone("per_frame/vivit_nano_patch8")
    assert "per_frame/swin_tiny" in vitdense.list_backbones("per_frame/swin*")
    assert "per_frame/vivit_base_patch16" not in vitdense.list_backbones("per_frame/*")

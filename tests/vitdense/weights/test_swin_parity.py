"""Our Swin equals transformers', torchvision's and timm's from their own weights, in float32 and float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin
from transformers import SwinBackbone, SwinConfig, SwinForImageClassification, SwinModel

from vitdense.contracts import Backbone

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
SMALL = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4)}
SIZES = [(512, 512), (250, 333), (64, 96)]


def transformers_config() -> SwinConfig:
    return SwinConfig(  # type: ignore[call-arg]  # out_features is a property, which their stubs leave out
        embed_dim=16,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 2, 4],
        out_features=["stage1", "stage2", "stage3", "stage4"],
        drop_path_rate=0.0,
    )


def timm_swin(size: tuple[int, int], **kwargs: Any) -> nn.Module:
    model: nn.Module = TimmSwin(img_size=size, embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), **kwargs)
    return model


def timm_maps(model: Any, images: Tensor) -> list[Tensor]:
    """NCHW maps, the last one normed."""
    maps: list[Tensor] = model.forward_intermediates(images, norm=True, intermediates_only=True)
    return maps


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, in units of the reference's mean size where that is above one."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert max(float(b.abs().mean()) for b in theirs) > 0.3, "the reference carries no signal"
    return max(float((a - b).abs().max() / b.abs().mean().clamp(min=1)) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_maps_equal_transformers_at_any_size(
    size: tuple[int, int], enliven: Enliven, fill: Fill, picture: Picture
) -> None:
    theirs = enliven(SwinBackbone(transformers_config()))
    ours = fill("swin_tiny", theirs.state_dict(), SMALL)
    assert ours.load_report is not None
    assert not ours.load_report.fresh
    images = picture(*size, batch=1 if size[0] > 400 else 2)
    assert apart(ours(images), list(theirs(images).feature_maps)) < SINGLE


@torch.no_grad()
def test_maps_equal_transformers_in_float64(enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs = enliven(SwinBackbone(transformers_config()))
    ours = fill("swin_tiny", theirs.state_dict(), SMALL)
    images = picture(250, 333).double()
    assert apart(ours.double()(images), list(theirs.double()(images).feature_maps)) < DOUBLE


@torch.no_grad()
@pytest.mark.parametrize("kind", [SwinBackbone, SwinModel, SwinForImageClassification])
def test_what_save_pretrained_writes_loads(
    kind: Any, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(kind(transformers_config()))
    theirs.save_pretrained(tmp_path)
    ours = fill("swin_tiny", tmp_path, SMALL)
    images = picture(250, 333)
    if kind is SwinBackbone:
        assert apart(ours(images), list(theirs(images).feature_maps)) < SINGLE
        return
    inner: Any = theirs.swin if kind is SwinForImageClassification else theirs
    images = picture(256, 320)  # SwinModel shrinks its windows on maps smaller than they are, and then fails
    out = inner(images)
    assert apart([ours.tokens(images).patches, ours.embed(images)], [out.last_hidden_state, out.pooler_output]) < SINGLE
    assert ours.load_report is not None
    assert {key.split(".")[1] for key in ours.load_report.fresh} == {"0", "1", "2"}


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_maps_equal_torchvisions_at_any_size(
    size: tuple[int, int], enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(TorchvisionSwin([4, 4], 16, [2, 2, 2, 2], [1, 2, 2, 4], [7, 7], stochastic_depth_prob=0.0))
    torch.save({"model": theirs.state_dict()}, tmp_path / "swin.pth")
    ours = fill("swin_tiny", tmp_path / "swin.pth", {**SMALL, "norm_maps": False})
    x, dense = picture(*size, batch=1 if size[0] > 400 else 2), []
    images = x
    if size[0] % 4 or size[1] % 4:  # torchvision drops the rest of a patch, where we pad
        x = nn.functional.pad(x, (0, -size[1] % 4, 0, -size[0] % 4))
    for i, part in enumerate(theirs.features):
        x = part(x)
        if i % 2:
            dense.append(x.permute(0, 3, 1, 2))
    assert apart(ours(images), dense) < SINGLE
    assert apart([ours.embed(images)], [theirs.norm(x).mean((1, 2))]) < SINGLE


@torch.no_grad()
def test_maps_equal_torchvisions_in_float64(enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs: Any = enliven(TorchvisionSwin([4, 4], 16, [2, 2, 2, 2], [1, 2, 2, 4], [7, 7])).double()
    ours = fill("swin_tiny", theirs.state_dict(), SMALL).double()
    images = picture(256, 320).double()
    assert apart([ours.embed(images)], [theirs.norm(theirs.features(images)).mean((1, 2))]) < DOUBLE


@torch.no_grad()
def test_maps_equal_timms_where_windows_divide(enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs = enliven(timm_swin((224, 224)))
    ours = fill("swin_tiny", theirs.state_dict(), {**SMALL, "norm_maps": False})
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        images = picture(224, 224).to(to)
        expected = timm_maps(theirs.to(to), images)
        maps = ours.to(to)(images)
        last = ours.tokens(images).patches.mT.reshape(maps[-1].shape)
        assert apart([*maps[:-1], last], expected) < bound


@torch.no_grad()
@pytest.mark.parametrize("size", [(512, 512), (256, 340)])
def test_timms_order_is_matched_on_request_where_windows_dont_divide(
    size: tuple[int, int], enliven: Enliven, fill: Fill, picture: Picture
) -> None:
    theirs = enliven(timm_swin(size))
    options = {**SMALL, "norm_maps": False}
    ours = fill("swin_tiny", theirs.state_dict(), {**options, "window_order": "roll_pad"})
    images = picture(*size, batch=1 if size[0] > 400 else 2)
    expected = timm_maps(theirs, images)[:-1]
    assert apart(ours(images)[:-1], expected) < SINGLE
    published = fill("swin_tiny", theirs.state_dict(), options)
    assert apart(published(images)[:-1], expected) > 0.01


@torch.no_grad()
def test_timm_features_only_and_official_keys_load(enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs = enliven(timm_swin((224, 224)))
    images = picture(224, 224)
    expected = fill("swin_tiny", theirs.state_dict(), SMALL)
    official = {}
    for key, tensor in theirs.state_dict().items():
        stage, _, rest = key.removeprefix("layers.").partition(".downsample.")
        official[f"layers.{int(stage) - 1}.downsample.{rest}" if rest else key] = tensor
    official["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    official["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    ours = fill("swin_tiny", {"model": {f"module.{k}": v for k, v in official.items()}}, SMALL)
    assert ours.load_report is not None
    assert ours.load_report.family == "official"
    assert {key.rpartition(".")[2] for key in ours.load_report.left_out} >= {"attn_mask", "relative_position_index"}
    torch.testing.assert_close(ours(images), expected(images), atol=0, rtol=0)
    only: Any = timm.create_model(
        "swin_tiny_patch4_window7_224", features_only=True, embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4)
    )
    ours = fill("swin_tiny", enliven(only).state_dict(), {**SMALL, "norm_maps": False})
    assert apart(ours(images), [each.permute(0, 3, 1, 2) for each in only(images)]) < SINGLE

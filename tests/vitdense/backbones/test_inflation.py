"""A clip that stands still gives an inflated network what its picture gives the network it was made of, at 1e-9."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vitdense
from vitdense.backbones import inflate
from vitdense.contracts import BACKBONES, Backbone, BackboneConfig
from vitdense.errors import UserError

Shrink = Callable[[str], BackboneConfig]
FAMILIES = (
    "vit_small_patch16",
    "deit_small_distilled_patch16",
    "deit3_small_patch16",
    "beit_base_patch16",
    "beitv2_base_patch16",
    "dinov2_small_patch14",
    "dinov2_giant_patch14_reg",
    "dinov3_small_plus_patch16",
    "dinov3_7b_patch16",
    "eva02_base_patch14",
    "eva02_base_patch16_clip",
    "vitdet_base_patch16",
    "sam_base_patch16",
    "clip_base_patch32",
    "siglip_base_patch16",
    "siglip2_base_patch16",
)
WAYS: list[dict[str, Any]] = [
    {"attention": "divided"},
    {"attention": "divided", "tubelet": 2, "kernel": "mean"},
    {"attention": "factorised_attention", "tubelet": 3, "kernel": "central"},
]
EXACT = 1e-9


def picture_network(config: BackboneConfig) -> Backbone:
    """In double precision, so that what is left is a fault and no rounding."""
    generator = torch.Generator().manual_seed(0)
    backbone = config.build().double().eval()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.12 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    backbone.config = config
    return backbone


def still(picture: Tensor, frames: int) -> Tensor:
    return picture[:, :, None].expand(-1, -1, frames, -1, -1)


def apart(video: Backbone, picture: Backbone, images: Tensor, frames: int, *, vector: bool = True) -> float:
    worst = 0.0
    for moving, standing in zip(video(still(images, frames)), picture(images), strict=True):
        assert float(standing.abs().mean()) > 0.1, "the picture's map carries no signal"
        worst = max(worst, float((moving - standing[:, :, None]).abs().max() / standing.abs().mean().clamp(min=1)))
    if vector:
        worst = max(worst, float((video.embed(still(images, frames)) - picture.embed(images)).abs().max()))
    return worst


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
@pytest.mark.parametrize("name", FAMILIES)
def test_a_still_clip_gives_the_pictures_maps(name: str, way: dict[str, Any], shrink: Shrink) -> None:
    picture = picture_network(shrink(name))
    video = inflate(picture, frames=4, **way).eval()
    images = torch.randn(1, 3, 75, 98, dtype=torch.float64)
    # SAM's neck is behind its vector, and no network of clips has one.
    assert apart(video, picture, images, 6, vector=not name.startswith("sam")) < EXACT


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["central", "mean"])
@pytest.mark.parametrize("name", ["vit_small_patch16", "eva02_base_patch14", "dinov3_small_plus_patch16"])
def test_joint_attention_is_exact_on_one_time(name: str, kernel: Any, shrink: Shrink) -> None:
    """And on more where there are patches alone, whose copies share what one would have got."""
    picture = picture_network(shrink(name))
    images = torch.randn(1, 3, 75, 98, dtype=torch.float64)
    video = inflate(picture, frames=2, tubelet=2, attention="joint", kernel=kernel).eval()
    assert apart(video, picture, images, 2) < EXACT
    assert apart(video, picture, images, 6) > 1e-3
    alone = {"cls_token": False, "num_registers": 0, "pool": "mean", "final_norm": "tokens"}
    picture = picture_network(shrink(name).model_copy(update=alone))
    video = inflate(picture, frames=2, tubelet=2, attention="joint", kernel=kernel).eval()
    assert apart(video, picture, images, 6) < EXACT


@torch.no_grad()
def test_the_factorised_encoder_has_the_pictures_maps_and_a_new_vector(shrink: Shrink) -> None:
    picture = picture_network(shrink("vit_small_patch16"))
    video = inflate(picture, frames=4, attention="factorised_encoder").eval()
    images = torch.randn(2, 3, 75, 98, dtype=torch.float64)
    assert apart(video, picture, images, 6, vector=False) < EXACT
    assert video.embed(still(images, 6)).shape == (2, video.embed_dim)


@pytest.mark.parametrize("kernel", ["central", "mean"])
@pytest.mark.parametrize("name", ["timesformer_nano_patch8", "vivit_nano_patch8_factorised"])
def test_pictures_weights_load_into_networks_of_clips(name: str, kernel: str) -> None:
    torch.manual_seed(0)
    picture = vitdense.create_backbone("vit_nano_patch8", image_size=48).eval()
    state = picture.state_dict()
    options: dict[str, Any] = {"inflation": kernel, "activation": "gelu", "tubelet": 2}
    video: Any = vitdense.create_backbone(name, weights=state, **options).eval()
    report = video.load_report
    assert "patch_embed.proj.weight" in report.adapted
    assert not report.left_out
    images = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        for moving, standing in zip(video(still(images, 4)), picture(images), strict=True):
            torch.testing.assert_close(moving, standing[:, :, None].expand_as(moving), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pictures_tables_are_resized_and_repeated() -> None:
    """An explicit size is the user's: the table becomes that of its grid, at every time."""
    torch.manual_seed(0)
    picture = vitdense.create_backbone("vit_nano_patch8", image_size=48)
    video: Any = vitdense.create_backbone("vivit_nano_patch8", weights=picture.state_dict(), image_size=64, frames=6)
    assert "pos_embed" in video.load_report.resized
    rows = video.pos_embed[0, 1:].unflatten(0, (3, 64))
    assert torch.equal(rows[0], rows[2])
    grey: Any = vitdense.create_backbone("vit3d_nano_patch8", weights=picture.state_dict(), in_channels=1)
    kernel = picture.get_parameter("patch_embed.proj.weight").sum(dim=1)
    torch.testing.assert_close(grey.patch_embed.proj.weight[:, 0, 4], kernel)
    assert grey.patch_embed.proj.weight[:, 0, :4].abs().max() == 0


@pytest.mark.parametrize("name", ["swin_nano", "timesformer_nano_patch8"])
def test_only_plain_picture_vits_are_inflated(name: str) -> None:
    with pytest.raises(UserError, match="can't be inflated: give one of our own plain ViTs"):
        inflate(vitdense.create_backbone(name))


def test_fixed_waves_are_not_inflated() -> None:
    with pytest.raises(UserError, match="a ViT of sincos can't be inflated"):
        inflate(vitdense.create_backbone("vit_nano_patch8", positions="sincos"))


def test_all_families_are_here() -> None:
    def family(name: str) -> str:
        return name.partition("_")[0]

    plain = [name for name in BACKBONES.names() if BACKBONES.find(name)[0].__name__ == "ViTConfig"]
    assert {family(name) for name in plain} == {family(name) for name in FAMILIES}

"""Our ViT equals timm's, transformers' and torchvision's from their own weights, in float32 and float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from vitdense.contracts import Backbone

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 16, "out_indices": (0, 2)}


def timm_vit(**kwargs: Any) -> nn.Module:
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        embed_dim=48,
        depth=3,
        num_heads=3,
        dynamic_img_size=True,
        dynamic_img_pad=True,
        **kwargs,
    )
    return model


def timm_maps(model: Any, images: Tensor) -> list[Tensor]:
    maps: list[Tensor] = model.forward_intermediates(images, indices=[0, 2], norm=True, intermediates_only=True)
    return maps


def transformers_vit() -> ViTConfig:
    return ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=224,
        patch_size=16,
    )


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, in units of the reference's mean size where that is above one."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert max(float(b.abs().mean()) for b in theirs) > 0.3, "the reference carries no signal"
    return max(float((a - b).abs().max() / b.abs().mean().clamp(min=1)) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (250, 333), (64, 96)])
def test_maps_equal_timms_at_any_size(size: tuple[int, int], enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs = enliven(timm_vit())
    ours = fill("vit_tiny_patch16", theirs.state_dict(), SMALL)
    images = picture(*size)
    assert apart(ours(images), timm_maps(theirs, images)) < SINGLE
    if size == (224, 224):  # timm resizes positions in float32, so that only the stored size is exact in float64
        ours, theirs, images = ours.double(), theirs.double(), images.double()
        assert apart(ours(images), timm_maps(theirs, images)) < DOUBLE


@torch.no_grad()
@pytest.mark.parametrize("no_embed_class", [True, False])
def test_registers_with_and_without_positions_equal_timms(
    no_embed_class: bool, enliven: Enliven, fill: Fill, picture: Picture
) -> None:
    theirs = enliven(timm_vit(reg_tokens=4, no_embed_class=no_embed_class, init_values=0.1))
    ours = fill("vit_tiny_patch16", theirs.state_dict(), {**SMALL, "num_registers": 4, "layer_scale": 0.1})
    images = picture(224, 224)
    assert apart(ours(images), timm_maps(theirs, images)) < SINGLE
    assert ours.load_report is not None
    assert "pos_embed" in ours.load_report.adapted
    assert ours.tokens(images).prefix.shape == (2, 5, 48)


@torch.no_grad()
def test_tokens_and_embed_equal_timms(enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs: Any = enliven(timm_vit())
    ours = fill("vit_tiny_patch16", theirs.state_dict(), SMALL)
    images = picture(224, 224)
    features = theirs.forward_features(images)
    tokens = ours.tokens(images)
    assert apart([tokens.prefix, tokens.patches], [features[:, :1], features[:, 1:]]) < SINGLE
    assert apart([ours.embed(images)], [theirs.forward_head(features, pre_logits=True)]) < SINGLE


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (256, 320), (64, 96)])
def test_tokens_equal_transformers_in_memory(
    size: tuple[int, int], enliven: Enliven, fill: Fill, picture: Picture
) -> None:
    theirs = enliven(ViTModel(transformers_vit()))
    ours = fill("vit_tiny_patch16", theirs.state_dict(), SMALL)
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        images = picture(*size).to(to)
        expected = theirs.to(to)(images, interpolate_pos_encoding=True).last_hidden_state
        assert apart([torch.cat(ours.to(to).tokens(images)[1::-1], dim=1)], [expected]) < bound


@torch.no_grad()
@pytest.mark.parametrize("kind", [ViTModel, ViTForImageClassification])
def test_what_save_pretrained_writes_loads_with_its_epsilon(
    kind: Any, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(kind(transformers_vit()))
    theirs.config.layer_norm_eps = 1e-3
    theirs = kind._from_config(theirs.config)
    enliven(theirs)
    theirs.save_pretrained(tmp_path)
    ours = fill("vit_tiny_patch16", tmp_path, SMALL)
    images = picture(224, 224)
    inner = theirs.vit if kind is ViTForImageClassification else theirs
    expected = inner(images).last_hidden_state
    assert apart([torch.cat(ours.tokens(images)[1::-1], dim=1)], [expected]) < SINGLE


@torch.no_grad()
def test_sharded_save_pretrained_loads(enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path) -> None:
    theirs: Any = enliven(ViTModel(transformers_vit()))
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ours = fill("vit_tiny_patch16", tmp_path, SMALL)
    images = picture(224, 224)
    assert apart([ours.embed(images)], [theirs(images).last_hidden_state[:, 0]]) < SINGLE


@torch.no_grad()
def test_embed_equals_torchvisions(enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path) -> None:
    theirs: Any = enliven(VisionTransformer(224, 16, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=192))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = fill("vit_tiny_patch16", tmp_path / "weights.pth", SMALL)
    theirs.heads = nn.Identity()
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        images = picture(224, 224).to(to)
        assert apart([ours.to(to).embed(images)], [theirs.to(to)(images)]) < bound

"""What is written for timm and transformers gives their networks our numbers, and comes back bit by bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import AutoModel, SwinBackbone, ViTImageProcessor

import vitdense
from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.weights import load_weights, read_weights

SINGLE = 1e-5
Enliven = Callable[[nn.Module], nn.Module]
Picture = Callable[..., Tensor]
SWIN: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 2), "window": 5}


def alive(enliven: Enliven, name: str, **options: Any) -> Backbone:
    backbone = vitdense.create_backbone(name, **options)
    enliven(backbone)
    return backbone


def all_tokens(backbone: Backbone, images: Tensor) -> Tensor:
    tokens = backbone.tokens(images)
    return torch.cat([tokens.prefix, tokens.patches], dim=1)


def apart(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert float(theirs.abs().mean()) > 0.1, "the reference carries no signal"
    return float((ours - theirs).abs().max())


def assert_comes_back(backbone: Backbone, folder: Path) -> None:
    """Read by us, the folder holds the same tensors, bit by bit, and the options that it says."""
    assert backbone.config is not None
    weights = read_weights(folder, backbone.config)
    again = backbone.config.build()
    load_weights(again, weights)
    state = again.state_dict()
    for key, tensor in backbone.state_dict().items():
        if not key.startswith("norms.") or key in weights.state:
            assert torch.equal(state[key], tensor), key
    options = backbone.config.model_dump()
    assert weights.options["mean"] == backbone.mean
    assert weights.options["std"] == backbone.std
    for name in weights.options.keys() & {"layer_norm_eps", "image_size", "activation"}:
        assert weights.options[name] == options[name]


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "mean", "layer_scale": 0.1},
        {"num_registers": 3, "mlp_ratio": 2.0},
        {"cls_token": False, "pool": "mean", "num_registers": 2},
        {"cls_token": False, "pool": "attention", "activation": "gelu_tanh"},
        {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu", "layer_norm_eps": 1e-5},
        {"mlp": "gated", "activation": "silu", "mlp_ratio": 8 / 3, "layer_scale": 1.0},
        {"positions": "none", "pool": "mean", "final_norm": "pooled"},
        {"in_channels": 4, "qkv_bias": False, "image_size": 48, "mean": (0.1,) * 4, "std": (0.3,) * 4},
    ],
)
def test_a_vit_becomes_timms(options: dict[str, Any], enliven: Enliven, picture: Picture, tmp_path: Path) -> None:
    ours = alive(enliven, "vit_nano_patch8", **options)
    report = vitdense.save_pretrained(ours, tmp_path, names="timm")
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert str(report).startswith(f"{tmp_path}: {len(theirs.state_dict())} tensors as timm ")
    assert theirs.pretrained_cfg["mean"] == list(ours.mean)
    for size in ((64, 64), (50, 77)):
        images = picture(*size)
        images = torch.cat([images, images[:, :1]], dim=1)[:, : len(ours.mean)]
        features = theirs.forward_features(images)
        assert apart(all_tokens(ours, images), features) < SINGLE
        assert apart(ours.embed(images), theirs.forward_head(features)) < SINGLE
    assert_comes_back(ours, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"position_antialias": False}, {"layer_norm_eps": 1e-3, "qkv_bias": False, "mlp_ratio": 2.0}]
)
def test_a_vit_becomes_transformers(
    options: dict[str, Any], enliven: Enliven, picture: Picture, tmp_path: Path
) -> None:
    ours = alive(enliven, "vit_nano_patch8", mean=(0.1, 0.2, 0.3), **options)
    report = vitdense.save_pretrained(ours, tmp_path, names="transformers")
    theirs = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    assert report.written == 70 - (12 if "qkv_bias" in options else 0)
    assert bool(report.notes) == ("position_antialias" not in options)
    for size in ((64, 64),) if report.notes else ((64, 64), (56, 80)):
        images = picture(*size)
        expected = theirs(images, interpolate_pos_encoding=True).last_hidden_state
        assert apart(all_tokens(ours, images), expected) < SINGLE
    processor: Any = ViTImageProcessor.from_pretrained(tmp_path)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert_comes_back(ours, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("names", ["timm", "transformers"])
def test_a_distilled_deit_becomes_theirs(names: Any, enliven: Enliven, picture: Picture, tmp_path: Path) -> None:
    options = {"dist_token": True, "pool": "cls_dist", "position_antialias": names == "timm"}
    ours = alive(enliven, "vit_nano_patch8", **options)
    report = vitdense.save_pretrained(ours, tmp_path, names=names)
    assert report.family == f"{names} deit"
    theirs: Any
    if names == "timm":
        theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    else:
        theirs = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    for size in ((64, 64), (56, 80)):
        images = picture(*size)
        if names == "timm":
            expected = theirs.forward_features(images)
            assert apart(ours.embed(images), theirs.forward_head(expected, pre_logits=True)) < SINGLE
        else:
            expected = theirs(images, interpolate_pos_encoding=True).last_hidden_state
        assert apart(all_tokens(ours, images), expected) < SINGLE
    assert_comes_back(ours, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("any_size", [False, True])
def test_a_swin_becomes_timms(any_size: bool, enliven: Enliven, picture: Picture, tmp_path: Path) -> None:
    options = {**SWIN, "window_order": "roll_pad", "always_shift": True} if any_size else SWIN
    ours = alive(enliven, "swin_nano", **options)
    report = vitdense.save_pretrained(ours, tmp_path, names="timm")
    assert set(report.left_behind) == {f"norms.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert bool(report.notes) == (not any_size)
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert len(theirs.state_dict()) == report.written
    for size in ((80, 80), (124, 96)) if any_size else ((80, 80),):
        images = picture(*size)
        features = theirs.forward_features(images)
        assert apart(ours.tokens(images).patches, features.flatten(1, 2)) < SINGLE
        assert apart(ours.embed(images), theirs.forward_head(features)) < SINGLE
    assert_comes_back(ours, tmp_path)


@torch.no_grad()
def test_a_swin_becomes_transformers(enliven: Enliven, picture: Picture, tmp_path: Path) -> None:
    ours = alive(enliven, "swin_nano", **SWIN, always_shift=True)
    report = vitdense.save_pretrained(ours, tmp_path, names="transformers")
    assert not report.notes
    theirs: Any = SwinBackbone.from_pretrained(tmp_path)
    theirs.eval()
    images = picture(125, 77)
    for mine, other in zip(ours(images), theirs(images).feature_maps, strict=True):
        assert apart(mine, other) < SINGLE
    assert_comes_back(ours, tmp_path)
    whole: Any = AutoModel.from_pretrained(tmp_path).eval()
    shifting_less = vitdense.create_backbone("swin_nano", weights=tmp_path, **SWIN, always_shift=False).eval()
    for size in ((100, 120), (80, 80)):  # in this order: after a small picture SwinModel doesn't shift any more
        images = picture(*size)
        assert apart(shifting_less.tokens(images).patches, whole(images).last_hidden_state) < SINGLE


@pytest.mark.parametrize(
    ("name", "options", "names", "message"),
    [
        ("vit_nano_patch8", {"stem": "conv"}, "timm", "its vit has stem 'patch', and here it is 'conv'"),
        ("vit_nano_patch8", {"stem": "conv"}, "transformers", "its vit has stem 'patch', and here it is 'conv'"),
        (
            "vit_nano_patch8",
            {"layer_norm_eps": 1e-12},
            "timm",
            "its vit has layer_norm_eps 1e-06 or 1e-05, and here it is 1e-12",
        ),
        ("vit_nano_patch8", {"mlp": "gated"}, "timm", "has the activation silu in its gated MLP, and here it is gelu"),
        (
            "vit_nano_patch8",
            {"pre_norm": True},
            "timm",
            "has a bias in the patch embedding .patch_bias. where there is",
        ),
        ("vit_nano_patch8", {"positions": "sincos"}, "timm", "has no sincos positions"),
        ("vit_nano_patch8", {"relations": "rope_unit"}, "timm", "has relations 'none', and here it is 'rope_unit'"),
        ("vit_nano_patch8", {"mlp": "gated"}, "transformers", "has mlp 'plain', and here it is 'gated'"),
        ("vit_nano_patch8", {"num_registers": 2}, "transformers", "dinov2 with registers needs layer_scale"),
        ("swin_nano", {"stem": "conv"}, "timm", "its swin has stem 'patch', and here it is 'conv'"),
        ("swin_nano", {"window_order": "roll_pad"}, "transformers", "has window_order 'pad_roll', and here it is"),
        ("vit_nano_patch8", {}, "torchvision", "names 'torchvision': give one of timm, transformers"),
        ("vit_nano_patch8", {"adapter": "simple_pyramid"}, "timm", "give the backbone itself, without an adapter"),
        ("timm/resnet18", {}, "transformers", "can't be written for transformers: it has no such network"),
    ],
)
def test_what_cant_be_said_is_refused_by_name(
    name: str, options: dict[str, Any], names: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        vitdense.save_pretrained(vitdense.create_backbone(name, **options), tmp_path / "out", names=names)
    assert not (tmp_path / "out").exists()


def test_a_backbone_without_its_config_is_refused(tmp_path: Path) -> None:
    backbone = vitdense.create_backbone("vit_nano_patch8")
    backbone.config = None
    with pytest.raises(UserError, match="make the backbone with create_backbone"):
        vitdense.save_pretrained(backbone, tmp_path, names="timm")


def test_the_files_say_how_the_network_is_built(tmp_path: Path) -> None:
    vitdense.save_pretrained(vitdense.create_backbone("vit_nano_patch8"), tmp_path, names="transformers")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]) == (64, 4, 2)
    assert config["model_type"] == "vit"
    with pytest.raises(UserError, match="has 2 attention heads, and num_heads is 4 here"):
        vitdense.create_backbone("vit_nano_patch8", num_heads=4, weights=tmp_path)

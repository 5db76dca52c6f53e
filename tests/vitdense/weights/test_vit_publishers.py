"""ViTs of publishers besides the libraries: MAE, DINO, DeiT III and archives of JAX give their references' numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from vitdense.backbones.options import IMAGENET_MEAN
from vitdense.contracts import BACKBONES, Backbone
from vitdense.weights import read_weights

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 16, "out_indices": (0, 2)}
NARROW = {"embed_dim": 48, "depth": 3, "num_heads": 3, "dynamic_img_size": True, "dynamic_img_pad": True}


def timm_vit(name: str = "vit_tiny_patch16_224", **options: Any) -> Any:
    return timm.create_model(name, **{**NARROW, **options})


def all_tokens(backbone: Backbone, images: Tensor) -> Tensor:
    tokens = backbone.tokens(images)
    return torch.cat([tokens.prefix, tokens.patches], dim=1)


def apart(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert float(theirs.abs().mean()) > 0.3, "the reference carries no signal"
    return float((ours - theirs).abs().max())


@torch.no_grad()
def test_tokens_equal_transformers_masked_autoencoder(
    enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    config = ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=192,
        mask_ratio=0.0,
        decoder_num_hidden_layers=1,
        decoder_hidden_size=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    theirs: Any = enliven(ViTMAEForPreTraining(config))
    theirs.save_pretrained(tmp_path)
    images = picture(224, 224)
    noise = torch.arange(196.0).expand(2, -1)
    expected = theirs.vit(images, noise=noise).last_hidden_state
    for source in (tmp_path, theirs.state_dict()):
        ours = fill("vit_tiny_patch16", source, SMALL)
        assert apart(all_tokens(ours, images), expected) < SINGLE
        assert ours.load_report is not None
        assert "decoder.mask_token" in ours.load_report.left_out


@torch.no_grad()
def test_the_official_masked_autoencoder_loads_without_its_decoder(
    enliven: Enliven, fill: Fill, picture: Picture
) -> None:
    theirs = enliven(timm_vit())
    decoder = {
        "mask_token": torch.ones(1, 1, 16),
        "decoder_pos_embed": torch.ones(1, 197, 16),
        "decoder_embed.weight": torch.ones(16, 48),
        "decoder_blocks.0.attn.qkv.weight": torch.ones(48, 16),
        "decoder_norm.weight": torch.ones(16),
        "decoder_pred.weight": torch.ones(768, 16),
    }
    ours = fill("vit_tiny_patch16", {"model": {**theirs.state_dict(), **decoder}}, SMALL)
    assert ours.load_report is not None
    assert set(ours.load_report.left_out) == {*decoder, "head.weight", "head.bias"}
    assert ours.mean == IMAGENET_MEAN
    images = picture(250, 333)
    expected: Any = theirs
    assert apart(all_tokens(ours, images), expected.forward_features(images)) < SINGLE


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False])
def test_dinos_teacher_loads(whole: bool, enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs: Any = enliven(timm_vit(num_classes=0))
    teacher = {f"backbone.{key}": tensor for key, tensor in theirs.state_dict().items()}
    teacher["head.last_layer.weight_g"] = torch.ones(8, 1)
    student = {f"module.{key}": tensor + 1 for key, tensor in teacher.items()}
    source = {"student": student, "teacher": teacher, "epoch": 99} if whole else teacher
    ours = fill("vit_tiny_patch16", source, SMALL)
    assert ours.load_report is not None
    assert ours.load_report.left_out == ("head.last_layer.weight_g",)
    assert ours.mean == IMAGENET_MEAN
    images = picture(64, 96)
    assert apart(all_tokens(ours, images), theirs.forward_features(images)) < SINGLE


@torch.no_grad()
def test_deit_iii_equals_timms_under_its_own_names(enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs: Any = enliven(timm_vit("deit3_small_patch16_224"))
    official = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor
        for key, tensor in theirs.state_dict().items()
    }
    assert "blocks.0.gamma_2" in official
    images = picture(250, 333)
    for state in (official, theirs.state_dict()):
        ours = fill("vit_tiny_patch16", state, {**SMALL, "layer_scale": 1e-6})
        assert ours.load_report is not None
        assert ours.load_report.adapted == ("pos_embed",)
        assert apart(all_tokens(ours, images), theirs.forward_features(images)) < SINGLE


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (250, 333)])
def test_a_distilled_deit_equals_timms(size: tuple[int, int], enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs: Any = enliven(timm_vit("deit_tiny_distilled_patch16_224"))
    ours = fill("deit_tiny_distilled_patch16", {"model": theirs.state_dict()}, SMALL)
    assert ours.load_report is not None
    assert ours.load_report.left_out == ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    images = picture(*size)
    features = theirs.forward_features(images)
    assert apart(all_tokens(ours, images), features) < SINGLE
    assert apart(ours.embed(images), theirs.forward_head(features, pre_logits=True)) < SINGLE
    if size == (224, 224):
        ours, theirs, images = ours.double(), theirs.double(), images.double()
        assert apart(all_tokens(ours, images), theirs.forward_features(images)) < DOUBLE


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (256, 336)])
@pytest.mark.parametrize("kind", [DeiTModel, DeiTForImageClassificationWithTeacher])
def test_a_distilled_deit_equals_transformers(
    kind: Any, size: tuple[int, int], enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    config = DeiTConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=192)
    theirs: Any = enliven(kind(config))
    theirs.save_pretrained(tmp_path)
    inner = theirs.deit if kind is DeiTForImageClassificationWithTeacher else theirs
    for source in (tmp_path, theirs.state_dict()):
        ours = fill("deit_tiny_distilled_patch16", source, SMALL)
        images = picture(*size)
        expected = inner(images, interpolate_pos_encoding=True).last_hidden_state
        assert apart(all_tokens(ours, images), expected) < SINGLE
        expected = inner.double()(images.double(), interpolate_pos_encoding=True).last_hidden_state
        assert apart(all_tokens(ours.double(), images.double()), expected) < DOUBLE
        inner.float()


def jax_archive(model: Any, heads: int, *, stacked: bool) -> dict[str, Any]:
    """timm's ViT as the first release of ViT in JAX names and shapes it, or as big_vision does with stacked blocks."""
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    width = state["cls_token"].shape[-1]
    mha, mlp, norm2 = (0, 0, 1) if stacked else (1, 3, 2)

    def block(i: int) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", f"LayerNorm_{norm2}")):
            named[f"{theirs}/scale"] = state[f"blocks.{i}.{ours}.weight"]
            named[f"{theirs}/bias"] = state[f"blocks.{i}.{ours}.bias"]
        for k, name in enumerate(("query", "key", "value")):
            part = slice(k * width, (k + 1) * width)
            kernel, bias = (state[f"blocks.{i}.attn.qkv.{kind}"][part] for kind in ("weight", "bias"))
            named[f"MultiHeadDotProductAttention_{mha}/{name}/kernel"] = kernel.T.reshape(width, heads, -1)
            named[f"MultiHeadDotProductAttention_{mha}/{name}/bias"] = bias.reshape(heads, -1)
        out = state[f"blocks.{i}.attn.proj.weight"]
        named[f"MultiHeadDotProductAttention_{mha}/out/kernel"] = out.T.reshape(heads, -1, width)
        named[f"MultiHeadDotProductAttention_{mha}/out/bias"] = state[f"blocks.{i}.attn.proj.bias"]
        for j in range(2):
            named[f"MlpBlock_{mlp}/Dense_{j}/kernel"] = state[f"blocks.{i}.mlp.fc{j + 1}.weight"].T
            named[f"MlpBlock_{mlp}/Dense_{j}/bias"] = state[f"blocks.{i}.mlp.fc{j + 1}.bias"]
        return named

    blocks = [block(i) for i in range(len(model.blocks))]
    archive = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    if stacked:
        archive["pos_embedding"] = state["pos_embed"]
        archive |= {f"Transformer/encoderblock/{k}": np.stack([each[k] for each in blocks]) for k in blocks[0]}
        return {f"params/{key}": array for key, array in archive.items()}
    archive["Transformer/posembed_input/pos_embedding"] = state["pos_embed"]
    numbered = {f"Transformer/encoderblock_{i}/{k}": a for i, each in enumerate(blocks) for k, a in each.items()}
    return archive | numbered


@torch.no_grad()
@pytest.mark.parametrize("stacked", [False, True])
def test_jaxs_archives_load_as_timm_loads_them(
    stacked: bool, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    written: Any = enliven(timm_vit(num_classes=10))
    path = tmp_path / "augreg.npz"
    np.savez(path, **jax_archive(written, 3, stacked=stacked))
    theirs: Any = timm_vit(num_classes=10, dynamic_img_size=False, dynamic_img_pad=False).eval()
    theirs.load_pretrained(str(path))
    ours = fill("vit_tiny_patch16", path, SMALL)
    assert ours.load_report is not None
    assert ours.load_report.family == "jax"
    assert len(ours.load_report.left_out) == 2
    assert ours.mean == (0.5, 0.5, 0.5)
    images = picture(224, 224)
    assert apart(all_tokens(ours, images), theirs.forward_features(images)) < SINGLE
    assert all(torch.equal(tensor, written.state_dict()[key]) for key, tensor in ours.state_dict().items())


def test_archives_of_sixteen_bits_are_read(tmp_path: Path, enliven: Enliven) -> None:
    archive = jax_archive(enliven(timm_vit()), 3, stacked=False)
    halves = {key: torch.from_numpy(array.copy()).bfloat16() for key, array in archive.items()}
    raw: dict[str, Any] = {key: half.view(torch.int16).numpy().view("V2") for key, half in halves.items()}
    np.savez(tmp_path / "half.npz", **raw)
    weights = read_weights(tmp_path / "half.npz", BACKBONES.create("vit_tiny_patch16", SMALL))
    assert torch.equal(weights.state["cls_token"], halves["cls"])

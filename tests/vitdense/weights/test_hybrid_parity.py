"""Our hybrids equal timm's and the backbone of transformers' DPT-hybrid from their own weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.std_conv import StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DPTConfig, DPTForDepthEstimation, DPTModel

from vitdense.contracts import BACKBONES, Backbone
from vitdense.errors import UserError, WeightsError
from vitdense.weights import save_pretrained

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3}
SIZES = [(224, 224), (250, 333), (64, 96)]
TIMM = {
    "vit_base_r50_s16": ("vit_base_r50_s16_224", 3, 16),
    "vit_small_r26_s32": ("vit_small_r26_s32_224", 4, 32),
    "vit_tiny_r_s16_p8": ("vit_tiny_r_s16_p8_224", 0, 32),
}


def timm_hybrid(name: str, **kwargs: Any) -> Any:
    return timm.create_model(TIMM[name][0], **SMALL, dynamic_img_size=True, num_classes=5, **kwargs)


def narrow_timm_hybrid(name: str) -> Any:
    """As timm makes it, with a ResNet of half the width."""
    layers = BACKBONES.find(name)[1]["stem_layers"]
    if not layers:
        return timm_hybrid(name)
    resnet = ResNetV2(
        list(layers),
        channels=(128, 256, 512, 1024),
        stem_chs=32,
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=partial(StdConv2dSame, eps=1e-8),
    )
    embedding = partial(HybridEmbed, backbone=resnet)
    return VisionTransformer(patch_size=1, embed_layer=embedding, dynamic_img_size=True, **SMALL)


def whole(images: Tensor, stride: int) -> Tensor:
    """What the reference is fed: its convolutions would pad other sizes in another way."""
    return F.pad(images, (0, -images.shape[3] % stride, 0, -images.shape[2] % stride))


def cropped(maps: list[Tensor], images: Tensor, ours: Backbone) -> list[Tensor]:
    height, width = images.shape[2:]
    return [
        each[:, :, : -(-height // level.stride), : -(-width // level.stride)]
        for each, level in zip(maps, ours.levels, strict=True)
    ]


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, in units of the reference's mean size where that is above one."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert min(float(b.abs().mean()) for b in theirs) > 0.3, "the reference carries no signal"
    return max(float((a - b).abs().max() / b.abs().mean().clamp(min=1)) for a, b in zip(ours, theirs, strict=True))


def timm_maps(theirs: Any, images: Tensor, *, blocks: bool) -> list[Tensor]:
    """The maps of all stages, and of all blocks."""
    resnet: Any = theirs.patch_embed.backbone
    stages = len(getattr(resnet, "stages", ()))
    maps: list[Tensor] = []
    if stages:
        maps += resnet.forward_intermediates(images, indices=list(range(1, stages + 1)), intermediates_only=True)
    if blocks:
        maps += theirs.forward_intermediates(images, indices=[0, 1, 2], norm=True, intermediates_only=True)
    return maps


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TIMM)
def test_maps_equal_timms_at_any_size(
    name: str, size: tuple[int, int], enliven: Enliven, fill: Fill, picture: Picture
) -> None:
    _, stages, stride = TIMM[name]
    theirs = enliven(narrow_timm_hybrid(name))
    width = 32 if stages else 64
    ours: Any = fill(name, theirs.state_dict(), {**SMALL, "stem_width": width, "out_indices": range(stages + 3)})
    images = picture(*size, batch=1)
    assert apart(ours(images), cropped(timm_maps(theirs, whole(images, stride), blocks=True), images, ours)) < SINGLE
    # timm resizes positions in float32, so that blocks are exact in float64 at the stored size only.
    blocks = size == (224, 224)
    ours, theirs, images = ours.double(), theirs.double(), images.double()
    expected = timm_maps(theirs, whole(images, stride), blocks=blocks)
    if expected:
        given = ours(images)[: len(expected)]
        ours.levels = ours.levels[: len(expected)]
        assert apart(given, cropped(expected, images, ours)) < DOUBLE


@torch.no_grad()
def test_tokens_and_embed_equal_timms(enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs: Any = enliven(timm_hybrid("vit_small_r26_s32"))
    ours = fill("vit_small_r26_s32", theirs.state_dict(), SMALL)
    images = picture(64, 96)
    features = theirs.forward_features(images)
    tokens = ours.tokens(images)
    assert apart([tokens.prefix, tokens.patches], [features[:, :1], features[:, 1:]]) < SINGLE
    assert apart([ours.embed(images)], [theirs.forward_head(features, pre_logits=True)]) < SINGLE


@torch.no_grad()
def test_the_stored_size_and_other_channels_come_along(enliven: Enliven, fill: Fill) -> None:
    theirs = enliven(timm_hybrid("vit_base_r50_s16", img_size=384))
    ours: Any = fill("vit_base_r50_s16", theirs.state_dict(), {**SMALL, "in_channels": 1})
    assert ours.config.image_size == 384
    assert ours.pos_embed.shape == (1, 24 * 24 + 1, 48)
    assert ours.load_report.adapted == ("patch_embed.backbone.stem.conv.weight",)
    assert ours.load_report.left_out == ("head.weight", "head.bias")


# ---------------------------------------------------------------- transformers

NANO = {**SMALL, "stem_layers": (1, 2, 1), "stem_width": 32, "out_indices": range(6)}


def dpt(**bit: Any) -> DPTConfig:
    resnet = {
        "model_type": "bit",
        "layer_type": "bottleneck",
        "global_padding": "same",
        "embedding_dynamic_padding": True,
        "depths": [1, 2, 1],
        "embedding_size": 32,
        "hidden_sizes": [128, 256, 512],
        "out_features": ["stage1", "stage2", "stage3"],
    }
    return DPTConfig(
        is_hybrid=True,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=96,
        patch_size=16,
        backbone_config={**resnet, **bit},
        backbone_featmap_shape=[1, 512, 6, 6],
        neck_hidden_sizes=[16, 16, 48, 48],
        fusion_hidden_size=16,
    )


def transformers_maps(model: Any, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The maps of all stages and blocks, and the last tokens; DPTModel's own forward refuses all sizes but one."""
    maps = list(model.embeddings.backbone(images).feature_maps)
    x = model.embeddings(images, interpolate_pos_encoding=True).last_hidden_states
    for layer in model.encoder.layer:
        x = layer(x)
        maps.append(x[:, 1:].mT.reshape(x.shape[0], -1, *maps[2].shape[2:]))
    return maps, model.layernorm(x)


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 96), *SIZES[1:]])
def test_maps_and_tokens_equal_transformers_at_any_size(
    size: tuple[int, int], enliven: Enliven, fill: Fill, picture: Picture
) -> None:
    theirs: Any = enliven(DPTModel(dpt()))
    ours = fill("vit_base_r50_s16", theirs.state_dict(), NANO)
    for precision, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        images = picture(*size).to(precision)
        maps, last = transformers_maps(theirs.to(precision), whole(images, 16))
        assert apart(ours.to(precision)(images), cropped(maps, images, ours)) < bound
        assert apart([torch.cat(ours.tokens(images)[1::-1], dim=1)], [last]) < bound


@torch.no_grad()
def test_the_backbone_of_a_depth_estimator_loads_from_its_folder(
    enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(DPTForDepthEstimation(dpt()))
    theirs.save_pretrained(tmp_path)
    ours: Any = fill("vit_base_r50_s16", tmp_path, NANO)
    images = picture(96, 96)
    assert apart([ours.tokens(images).patches], [theirs.dpt(images).last_hidden_state[:, 1:]]) < SINGLE
    assert (ours.config.layer_norm_eps, ours.config.image_size, ours.config.norm_maps) == (1e-12, 96, False)
    assert all(key.startswith(("neck.", "head.", "dpt.pooler.")) for key in ours.load_report.left_out)


@pytest.mark.parametrize(("name", "value"), [("global_padding", None), ("embedding_dynamic_padding", False)])
def test_another_padding_is_refused(name: str, value: Any, fill: Fill, tmp_path: Path) -> None:
    DPTModel(dpt(**{name: value})).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=f"has a ResNet with {name} {value}; known here"):
        fill("vit_base_r50_s16", tmp_path, NANO)


# ---------------------------------------------------------------- the first release, and back to timm


def jax_unit(conv: str, norm: str, module: nn.Conv2d) -> dict[str, tuple[int, ...]]:
    places = (1, 1, 1, module.out_channels)
    kernel = tuple(module.weight.permute(2, 3, 1, 0).shape)
    return {f"{conv}/kernel": kernel, f"{norm}/scale": places, f"{norm}/bias": places}


def jax_resnet(resnet: Any) -> dict[str, tuple[int, ...]]:
    stem = getattr(resnet, "stem", resnet)
    shapes = jax_unit("conv_root", "gn_root", stem.conv)
    for i, stage in enumerate(getattr(resnet, "stages", ()), start=1):
        for j, block in enumerate(stage.blocks, start=1):
            unit = f"block{i}/unit{j}"
            for k in (1, 2, 3):
                shapes |= jax_unit(f"{unit}/conv{k}", f"{unit}/gn{k}", getattr(block, f"conv{k}"))
            if j == 1:
                shapes |= jax_unit(f"{unit}/conv_proj", f"{unit}/gn_proj", block.downsample.conv)
    return shapes


def jax_block(name: str) -> dict[str, tuple[int, ...]]:
    attention = f"{name}/MultiHeadDotProductAttention_1"
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("query", "key", "value"):
        shapes |= {f"{attention}/{part}/kernel": (48, 3, 16), f"{attention}/{part}/bias": (3, 16)}
    shapes |= {f"{attention}/out/kernel": (3, 16, 48), f"{attention}/out/bias": (48,)}
    for j, (inside, outside) in enumerate(((48, 192), (192, 48))):
        shapes |= {
            f"{name}/MlpBlock_3/Dense_{j}/kernel": (inside, outside),
            f"{name}/MlpBlock_3/Dense_{j}/bias": (outside,),
        }
    for norm in (f"{name}/LayerNorm_0", f"{name}/LayerNorm_2"):
        shapes |= {f"{norm}/scale": (48,), f"{norm}/bias": (48,)}
    return shapes


def jax_release(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Random numbers under the names and in the shapes that the JAX release has for a network of timm's."""
    shapes = jax_resnet(model.patch_embed.backbone)
    shapes["embedding/kernel"] = tuple(model.patch_embed.proj.weight.permute(2, 3, 1, 0).shape)
    shapes["Transformer/posembed_input/pos_embedding"] = tuple(model.pos_embed.shape)
    shapes |= {"embedding/bias": (48,), "cls": (1, 1, 48)}
    for i in range(3):
        shapes |= jax_block(f"Transformer/encoderblock_{i}")
    shapes |= {"Transformer/encoder_norm/scale": (48,), "Transformer/encoder_norm/bias": (48,)}
    generator = np.random.default_rng(0)
    return {
        name: (0.12 * generator.standard_normal(shape) + name.endswith("scale")).astype(np.float32)
        for name, shape in shapes.items()
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_small_r26_s32", "vit_tiny_r_s16_p8"])
def test_the_jax_releases_names_are_read_as_timm_reads_them(
    name: str, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs = timm_hybrid(name).eval()
    arrays = jax_release(theirs)
    np.savez(tmp_path / "released.npz", allow_pickle=False, **arrays)
    theirs.load_pretrained(str(tmp_path / "released.npz"))
    ours: Any = fill(name, tmp_path / "released.npz", SMALL)
    images = picture(64, 96)
    assert apart([ours.tokens(images).patches], [theirs.forward_features(images)[:, 1:]]) < SINGLE
    assert ours.load_report.family == "jax"
    assert ours.config.image_size == 224


@torch.no_grad()
@pytest.mark.parametrize(("name", "channels"), list(zip(TIMM, (3, 4, 1), strict=True)))
def test_what_is_written_for_timm_gives_the_same_there_and_comes_back(
    name: str, channels: int, enliven: Enliven, fill: Fill, tmp_path: Path
) -> None:
    made: Any = fill(name, timm_hybrid(name).state_dict(), {**SMALL, "in_channels": channels, "image_size": 96})
    ours: Any = enliven(made)
    report = save_pretrained(ours, tmp_path, "timm")
    assert report.notes == (f"sizes that don't divide by {TIMM[name][2]} are padded in another way there",)
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, channels, 64, 96)
    tokens = ours.tokens(images)
    assert apart([torch.cat(tokens[1::-1], dim=1)], [theirs.forward_features(images)]) < SINGLE
    assert torch.equal(fill(name, tmp_path, {**SMALL, "in_channels": channels}).tokens(images).patches, tokens.patches)


def test_a_resnet_that_timm_has_no_name_for_is_not_written(fill: Fill, tmp_path: Path) -> None:
    ours = fill("vit_base_r50_s16", DPTModel(dpt()).state_dict(), NANO)
    with pytest.raises(UserError, match=r"stem_layers .*, and here it is \(1, 2, 1\)"):
        save_pretrained(ours, tmp_path, "timm")
    assert not list(tmp_path.iterdir())

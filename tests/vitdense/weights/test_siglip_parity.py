"""Our SigLIP towers equal transformers', timm's, open_clip's and big_vision's, from what each of them writes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

import vitdense
from tests.vitdense.weights.siglip_archives import big_vision_archive
from vitdense.contracts import BACKBONES, Backbone
from vitdense.weights import read_weights

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
ByTimm = Callable[..., Path]
Picture = Callable[..., Tensor]
Padded = Callable[[Tensor, int], Tensor]
Apart = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3}
OURS: dict[str, Any] = {**SMALL, "out_indices": (0, 2)}
STORED = (112, 112)
SIZES = [STORED, (250, 333), (64, 96)]


def outputs(ours: Backbone, images: Tensor) -> list[Tensor]:
    """All that a backbone gives: two maps, tokens, one vector."""
    return [*ours(images), ours.tokens(images).patches, ours.embed(images)]


# ---------------------------------------------------------------- transformers


def transformers_config(kind: Any = SiglipVisionConfig, **options: Any) -> Any:
    settings = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 192,
        "patch_size": 16,
    }
    return kind(**settings, **options)


def transformers_outputs(theirs: Any, images: Tensor) -> list[Tensor]:
    given = theirs(images, interpolate_pos_encoding=True, output_hidden_states=True)
    grid = tuple(side // 16 for side in images.shape[2:])
    maps = [theirs.post_layernorm(given.hidden_states[i]).mT.unflatten(2, grid) for i in (1, 3)]
    return [*maps, given.last_hidden_state, given.pooler_output]


@torch.no_grad()
def test_all_outputs_equal_transformers(
    enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart
) -> None:
    theirs = enliven(SiglipVisionModel(transformers_config(image_size=112)))
    ours = fill("siglip_base_patch16", theirs.state_dict(), OURS)
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        for size in SIZES:
            images = picture(*size).to(to)
            expected = transformers_outputs(theirs.to(to), padded(images, 16))
            assert apart(outputs(ours.to(to), images), expected) < bound


@torch.no_grad()
@pytest.mark.parametrize("kind", [SiglipModel, SiglipVisionModel])
def test_what_transformers_writes_loads_with_its_activation_and_epsilon(
    kind: Any, enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart, tmp_path: Path
) -> None:
    config = transformers_config(image_size=112, hidden_act="gelu", layer_norm_eps=1e-3)
    if kind is SiglipModel:
        text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 50000}
        config = SiglipConfig(vision_config=config.to_dict(), text_config=text)
    theirs: Any = enliven(kind(config))
    theirs.save_pretrained(tmp_path)
    ours = fill("siglip2_base_patch16", tmp_path, OURS)
    images = picture(250, 333)
    tower = theirs.vision_model if kind is SiglipModel else theirs
    assert apart(outputs(ours, images), transformers_outputs(tower, padded(images, 16))) < SINGLE
    assert ours.load_report is not None
    left_out = {key.split(".")[0] for key in ours.load_report.left_out}
    assert left_out == ({"logit_scale", "logit_bias", "text_model"} if kind is SiglipModel else set())


@torch.no_grad()
def test_a_tower_without_a_head_gives_its_mean(
    enliven: Enliven, fill: Fill, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    theirs: Any = enliven(SiglipVisionModel(transformers_config(image_size=112, vision_use_head=False)))
    theirs.save_pretrained(tmp_path)
    ours = fill("siglip_base_patch16", tmp_path, OURS)
    images = picture(*STORED)
    assert apart([ours.embed(images)], [theirs(images).last_hidden_state.mean(dim=1)]) < SINGLE


def naflex_outputs(theirs: Any, images: Tensor) -> list[Tensor]:
    """Theirs take patches, and the grid they come from."""
    patches = torch.stack([convert_image_to_patches(image, 16) for image in images])
    grid = (images.shape[2] // 16, images.shape[3] // 16)
    given = theirs(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long),
        spatial_shapes=torch.tensor([grid] * len(images)),
        output_hidden_states=True,
    )
    maps = [theirs.post_layernorm(given.hidden_states[i]).mT.unflatten(2, grid) for i in (1, 3)]
    return [*maps, given.last_hidden_state, given.pooler_output]


@torch.no_grad()
@pytest.mark.parametrize("on_disk", [False, True])
def test_all_outputs_equal_transformers_for_any_shape(
    on_disk: bool, enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart, tmp_path: Path
) -> None:
    theirs: Any = enliven(Siglip2VisionModel(transformers_config(Siglip2VisionConfig, num_patches=49)))
    theirs.save_pretrained(tmp_path)
    ours = fill("siglip2_base_patch16", tmp_path if on_disk else theirs.state_dict(), OURS)
    # transformers resizes positions in float32, also to the size that they have.
    for to, bound in ((torch.float32, SINGLE), (torch.float64, 1e-6)):
        for size in SIZES:
            images = picture(*size).to(to)
            assert apart(outputs(ours.to(to), images), naflex_outputs(theirs.to(to), padded(images, 16))) < bound


# ---------------------------------------------------------------- timm and open_clip


def timm_siglip(kind: str = "vit_base_patch16_siglip_224", **options: Any) -> Any:
    settings = {**SMALL, "img_size": 112, "dynamic_img_size": True, "dynamic_img_pad": True}
    return timm.create_model(kind, **{**settings, **options})


def timm_outputs(theirs: Any, images: Tensor) -> list[Tensor]:
    maps = theirs.forward_intermediates(images, indices=[0, 2], norm=True, intermediates_only=True)
    features = theirs.forward_features(images)
    return [*maps, features, theirs.forward_head(features, pre_logits=True)]


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "name", "stored"),
    [
        ("vit_base_patch16_siglip_224", "siglip_base_patch16", 112),
        ("vit_so400m_patch14_siglip_224", "siglip_so400m_patch14", 112),
        ("vit_base_patch32_siglip_256", "siglip2_base_patch32", 128),
    ],
)
def test_all_outputs_equal_timms(
    kind: str,
    name: str,
    stored: int,
    enliven: Enliven,
    fill: Fill,
    picture: Picture,
    apart: Apart,
    by_timm: ByTimm,
) -> None:
    """With the exact GELU in timm's networks of the first SigLIP, with the tanh form in the others."""
    theirs = enliven(timm_siglip(kind, img_size=stored))
    ours = fill(name, by_timm(theirs), OURS)
    for size in SIZES:
        images = picture(*size)
        assert apart(outputs(ours, images), timm_outputs(theirs, images)) < SINGLE
    # timm resizes positions in float32, so that only the stored size is exact in float64.
    images = picture(stored, stored).double()
    assert apart(outputs(ours.double(), images), timm_outputs(theirs.double(), images)) < DOUBLE


@pytest.mark.parametrize("kind", [name for name in timm.list_models("vit_*siglip*") if "_gap_" not in name])
def test_every_tower_of_timms_gets_its_own_gelu(kind: str, by_timm: ByTimm) -> None:
    with torch.device("meta"):
        theirs: Any = timm.create_model(kind, depth=1)
    state = {key: torch.zeros(tensor.shape) for key, tensor in theirs.state_dict().items()}
    config = BACKBONES.create("siglip_base_patch16", {"num_heads": theirs.blocks[0].attn.num_heads})
    activation = type(theirs.blocks[0].mlp.act).__name__
    assert type(theirs.attn_pool.mlp.act).__name__ == activation
    told = read_weights(by_timm(theirs, state), config).options["activation"]
    assert told == {"GELU": "gelu", "GELUTanh": "gelu_tanh"}[activation]


@torch.no_grad()
def test_the_tower_of_open_clip_equals_ours(
    enliven: Enliven, fill: Fill, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    tower = TimmModel("vit_base_patch16_siglip_224", embed_dim=768, image_size=112, pool="map", proj="none")
    tower.trunk = timm_siglip()
    text = open_clip.CLIPTextCfg(vocab_size=50, width=32, heads=2, layers=1)
    whole = open_clip.CustomTextCLIP(24, open_clip.CLIPVisionCfg(layers=1, width=64, image_size=32), text)
    whole.visual = tower
    enliven(whole)
    save_file(whole.state_dict(), tmp_path / "open_clip_model.safetensors")
    told = {"model_cfg": {"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    ours = fill("siglip_base_patch16", tmp_path, OURS)
    images = picture(*STORED)
    assert apart([ours.embed(images)], [tower(images)]) < SINGLE
    assert ours.load_report is not None
    assert {key.split(".")[0] for key in ours.load_report.left_out} == {"text", "logit_scale"}


@torch.no_grad()
def test_all_outputs_equal_timms_for_any_shape(
    enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart
) -> None:
    theirs: Any = enliven(timm.create_model("naflexvit_base_patch16_siglip", **SMALL, pos_embed_grid_size=(7, 7)))
    ours = fill("siglip2_base_patch16", theirs.state_dict(), OURS)
    for size in SIZES:
        images = picture(*size)
        assert apart(outputs(ours, images), timm_outputs(theirs, padded(images, 16))) < SINGLE


# ---------------------------------------------------------------- big_vision


@torch.no_grad()
@pytest.mark.parametrize("stacked", [False, True])
def test_big_visions_archives_load_as_timm_loads_them(
    stacked: bool, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    """big_vision's GELU is the tanh form."""
    written: Any = enliven(timm_siglip())
    np.savez(tmp_path / "siglip.npz", **big_vision_archive(written, stacked=stacked))
    theirs = timm_siglip(act_layer="gelu_tanh").eval()
    theirs.load_pretrained(str(tmp_path / "siglip.npz"))
    ours = fill("siglip_base_patch16", tmp_path / "siglip.npz", OURS)
    for size in SIZES:
        images = picture(*size)
        assert apart(outputs(ours, images), timm_outputs(theirs, images)) < SINGLE
    assert ours.load_report is not None
    assert set(ours.load_report.left_out) == {"params/t", "params/b", "params/txt/pos_embedding"}
    assert ours.mean == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_big_visions_archives_for_any_shape_load_as_timm_loads_them(
    enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart, tmp_path: Path
) -> None:
    archive = big_vision_archive(enliven(timm_siglip()), stacked=True)
    kernel, table = archive["params/img/embedding/kernel"], archive["params/img/pos_embedding"]
    archive |= {
        "params/img/embedding/kernel": kernel.reshape(-1, 48),
        "params/img/pos_embedding": table.reshape(7, 7, 48),
    }
    np.savez(tmp_path / "naflex.npz", **archive)
    theirs: Any = timm.create_model("naflexvit_base_patch16_siglip", **SMALL, pos_embed_grid_size=(7, 7)).eval()
    theirs.load_pretrained(str(tmp_path / "naflex.npz"))
    ours = fill("siglip2_base_patch16", tmp_path / "naflex.npz", OURS)
    for size in SIZES:
        images = picture(*size)
        assert apart(outputs(ours, images), timm_outputs(theirs, padded(images, 16))) < SINGLE


# ---------------------------------------------------------------- and back


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("names", ["timm", "transformers"])
def test_it_goes_out_and_comes_back(
    activation: str, names: Any, enliven: Enliven, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    ours = vitdense.create_backbone("siglip_base_patch16", **OURS, image_size=112, activation=activation)
    enliven(ours)
    assert bool(vitdense.save_pretrained(ours, tmp_path, names=names).notes) == (names == "transformers")
    images = picture(*STORED)
    if names == "timm":
        theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        expected = timm_outputs(theirs, images)
    else:
        theirs, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(loading[found] for found in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        expected = transformers_outputs(theirs.eval(), images)
    assert apart(outputs(ours, images), expected) < SINGLE
    again = vitdense.create_backbone("siglip_base_patch16", weights=tmp_path, **OURS)
    state = again.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in ours.state_dict().items())
    assert again.config is not None
    assert again.config.model_dump()["activation"] == activation

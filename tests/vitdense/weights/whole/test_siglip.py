"""transformers' SigLIP and SigLIP 2, loaded whole from what save_pretrained wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

import vitdense
from vitdense.errors import WeightsError
from vitdense.weights.rows import translate
from vitdense.weights.whole.siglip import HEAD

SINGLE = 1e-5
Enliven = Callable[[nn.Module], nn.Module]
Apart = Callable[[list[Tensor], list[Tensor]], float]
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "patch 8": ({}, {"patch_size": 8, "image_size": 32}),
    # Widths of MLPs as of the shape-optimised model, a size that isn't a multiple of its patch, another space.
    "shape-optimised": (
        {"intermediate_size": 119, "projection_size": 48, "max_position_embeddings": 9},
        {"patch_size": 14, "image_size": 61, "hidden_size": 48, "intermediate_size": 179, "hidden_act": "gelu"},
    ),
}


def siglip(name: str, folder: Path, enliven: Enliven) -> Any:
    text, vision = CONFIGS[name]
    config = SiglipConfig(
        text_config={**SMALL, "vocab_size": 200, "max_position_embeddings": 12, **text},
        vision_config={**SMALL, **vision},
    )
    theirs: Any = enliven(SiglipModel(config))
    theirs.save_pretrained(folder)
    return theirs


def siglip2(folder: Path, enliven: Enliven) -> Any:
    config = Siglip2Config(
        text_config={**SMALL, "vocab_size": 200, "max_position_embeddings": 12},
        vision_config={**SMALL, "patch_size": 8, "num_patches": 25},
    )
    theirs: Any = enliven(Siglip2Model(config))
    theirs.save_pretrained(folder)
    return theirs


def draw(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))


def words(length: int) -> Tensor:
    return torch.randint(0, 200, (3, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_and_logits_equal_transformers(name: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs = siglip(name, tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    assert ours.backbone.mean == (0.5, 0.5, 0.5)
    side, patch = theirs.config.vision_config.image_size, theirs.config.vision_config.patch_size
    # Their convolution leaves the rest of a picture away, ours pads it.
    images, tokens = draw(side // patch * patch, side // patch * patch), words(ours.head.text.context)
    found = theirs(input_ids=tokens, pixel_values=ours.normalise(images))
    outputs = ours({"images": images, "tokens": tokens})
    mine = [outputs["image_embeddings"], outputs["text_embeddings"]]
    assert apart(mine, [found.image_embeds, found.text_embeds]) < SINGLE
    logits = outputs["logit_scale"] * mine[0] @ mine[1].T + outputs["logit_bias"]
    assert apart([logits], [found.logits_per_image]) < SINGLE
    raw = theirs.get_image_features(ours.normalise(images)), theirs.get_text_features(tokens)
    mine = [ours.encode_image(images, normalize=False), ours.encode_text(tokens, normalize=False)]
    assert apart(mine, [each.pooler_output for each in raw]) < SINGLE


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_pictures_of_another_size_have_resized_positions(
    name: str, enliven: Enliven, apart: Apart, tmp_path: Path
) -> None:
    theirs = siglip(name, tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    patch = theirs.config.vision_config.patch_size
    for height, width in ((51, 85), (84, 40)):
        images = draw(height, width)
        padded = F.pad(ours.normalise(images), (0, -width % patch, 0, -height % patch))
        expected = theirs.get_image_features(padded, interpolate_pos_encoding=True).pooler_output
        assert apart([ours.encode_image(images, normalize=False)], [expected]) < SINGLE


@torch.no_grad()
@pytest.mark.parametrize("size", [(40, 40), (16, 96), (37, 61)], ids=str)
def test_pictures_of_any_shape_equal_their_patches(
    size: tuple[int, int], enliven: Enliven, apart: Apart, tmp_path: Path
) -> None:
    """SigLIP 2: their patches with padded ones masked, as their processor cuts them; ours as an ordinary picture."""
    import numpy as np
    from PIL import Image

    theirs = siglip2(tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=25)
    given = processor(Image.fromarray(noise), return_tensors="pt")
    tokens = words(12)
    found = theirs(
        input_ids=tokens,
        pixel_values=given["pixel_values"],
        pixel_attention_mask=given["pixel_attention_mask"],
        spatial_shapes=given["spatial_shapes"],
    )
    assert ours.preprocess.mode == "patches"
    shown = torch.from_numpy(np.array(ours.preprocess(Image.fromarray(noise)))).permute(2, 0, 1)[None]
    mine = [ours.encode_image(shown), ours.encode_text(tokens)]
    assert apart(mine, [found.image_embeds, found.text_embeds]) < SINGLE


def test_every_key_is_accounted_for(enliven: Enliven, tmp_path: Path) -> None:
    theirs = siglip("shape-optimised", tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    assert set(ours.backbone.load_report.matched) == set(ours.backbone.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    back = translate(ours.head.state_dict(), HEAD, "out")
    given = {key: tensor for key, tensor in theirs.state_dict().items() if not key.startswith("vision_model.")}
    assert back.state.keys() == given.keys()
    assert all(torch.equal(back.state[key], given[key]) for key in given)


@pytest.mark.parametrize(
    "key", ["text_model.head.bias", "logit_bias", "vision_model.head.probe", "vision_model.post_layernorm.bias"]
)
def test_a_missing_key_is_named(key: str, enliven: Enliven, tmp_path: Path) -> None:
    siglip("patch 8", tmp_path, enliven)
    state = load_file(tmp_path / "model.safetensors")
    del state[key]
    save_file(state, tmp_path / "model.safetensors")
    named = {"vision_model.head.probe": "attn_pool", "vision_model.post_layernorm.bias": "norm.bias"}
    with pytest.raises(WeightsError, match=named.get(key, key)):
        vitdense.load_model(tmp_path)


def test_a_tower_without_its_pool_is_refused(enliven: Enliven, tmp_path: Path) -> None:
    siglip("patch 8", tmp_path, enliven)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="vision_use_head False"):
        vitdense.load_model(tmp_path)


def test_pictures_are_stretched_unless_the_processor_says_otherwise(enliven: Enliven, tmp_path: Path) -> None:
    siglip("patch 8", tmp_path, enliven)
    default: Any = vitdense.load_model(tmp_path)
    assert (default.preprocess.size, default.preprocess.mode) == ((32, 32), "squash")
    facts = {"size": {"height": 40, "width": 48}, "resample": 2, "do_rescale": True, "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    ours: Any = vitdense.load_model(tmp_path)
    assert (ours.preprocess.size, ours.preprocess.interpolation) == ((40, 48), "bilinear")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**facts, "do_normalize": False}))
    with pytest.raises(WeightsError, match="do_normalize False"):
        vitdense.load_model(tmp_path)

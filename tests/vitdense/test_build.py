"""From names to modules: backbones with weights and adapter, and models that predict pictures of any kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitdense
from heads import create_head
from vitdense.contracts import Level
from vitdense.engine import fit
from vitdense.errors import UserError
from vitdense.model import Model
from vitdense.recipe import load_recipe

THIN: dict[str, Any] = {"embed_dim": 24, "depth": 4, "num_heads": 3}


@pytest.fixture
def vit_folder(tmp_path: Path) -> Path:
    """What transformers writes for a small ViT: its eps is 1e-12 and its positions are resized without antialias."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def model(name: str = "swin_nano") -> Model:
    backbone = vitdense.create_backbone(name)
    head = create_head("linear", backbone.levels, num_classes=3)
    return Model(backbone, head, classes=["a", "b", "c"], palette=[(0, 0, 0)] * 3).eval()


def test_an_adapter_gives_its_levels() -> None:
    backbone = vitdense.create_backbone("vit_nano_patch8", adapter={"name": "simple_pyramid", "channels": 16})
    assert backbone.levels == tuple(Level(16, stride) for stride in (4, 8, 16, 32))
    maps = backbone(torch.randn(1, 3, 50, 33))
    assert [tuple(m.shape[2:]) for m in maps] == [(13, 9), (7, 5), (4, 3), (2, 2)]


def test_a_checkpoints_own_facts_stand_below_the_users(vit_folder: Path) -> None:
    theirs = vitdense.create_backbone("vit_nano_patch8", weights=vit_folder, **THIN)
    assert theirs.config is not None
    assert theirs.config.model_dump()["layer_norm_eps"] == 1e-12
    assert theirs.config.model_dump()["position_antialias"] is False
    ours = vitdense.create_backbone("vit_nano_patch8", weights=vit_folder, layer_norm_eps=1e-3, **THIN)
    assert ours.config is not None
    assert ours.config.model_dump()["layer_norm_eps"] == 1e-3


def test_a_run_remembers_what_its_weights_said(vit_folder: Path, tmp_path: Path) -> None:
    text = f"""
backbone: {{name: vit_nano_patch8, weights: {vit_folder}, embed_dim: 24, depth: 4, num_heads: 3}}
head: {{name: linear}}
data: {{name: shapes, size: 32, train_size: 4, val_size: 2, batch_size: 2, workers: 0}}
schedule: {{steps: 1}}
engine: {{run_dir: {tmp_path / "run"}, accelerator: cpu, precision: 32-true}}
"""
    (tmp_path / "recipe.yaml").write_text(text)
    fit(load_recipe(tmp_path / "recipe.yaml"))
    loaded = vitdense.load_model(tmp_path / "run")
    assert loaded.backbone.config is not None
    assert loaded.backbone.config.model_dump()["layer_norm_eps"] == 1e-12


def test_bad_options_are_one_message() -> None:
    with pytest.raises(UserError, match=r"swin_nano\.windw: unknown key, did you mean 'window'"):
        vitdense.create_backbone("swin_nano", windw=3)
    with pytest.raises(UserError, match="no adapter named 'pyramid'"):
        vitdense.create_backbone("vit_nano_patch8", adapter="pyramid")


def test_names_are_listed() -> None:
    assert "swin_tiny" in vitdense.list_backbones("swin*")
    assert "timm/resnet50" in vitdense.list_backbones("timm/resnet5*")


def test_pictures_of_every_kind_are_predicted_at_their_own_size(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    image.save(tmp_path / "a.png")
    masks = model().predict([array, image, tmp_path / "a.png", str(tmp_path / "a.png")])
    assert {mask.shape for mask in masks} == {(31, 47)}
    assert all(torch.equal(mask, masks[0]) for mask in masks)


def test_floats_and_bytes_give_the_same_outputs() -> None:
    trained, images = model(), torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8)
    sizes = [(40, 50)]
    with torch.no_grad():
        ours = trained({"images": images, "sizes": sizes})["logits"]
        theirs = trained({"images": images / 255, "sizes": sizes})["logits"]
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected a path, a PIL image, a \(H, W, C\) .* given float"):
        model().predict([3.0])
    with pytest.raises(UserError, match="picture 0 has 1 channels, the model takes 3"):
        model().predict([np.zeros((8, 8, 1), np.uint8)])


def test_predicting_leaves_training_mode_as_it_was() -> None:
    trained = model().train()
    trained.predict([np.zeros((32, 32, 3), np.uint8)])
    assert trained.training


@pytest.mark.parametrize(("pattern", "name"), [("timm/resnet1*", "timm/resnet18"), ("open_clip/RN*", "open_clip/RN50")])
def test_the_names_of_other_libraries_are_listed(pattern: str, name: str) -> None:
    assert name in vitdense.list_backbones(pattern)


def test_transformers_types_are_listed() -> None:
    assert {"hf/dinov2", "hf/swin", "hf/clip_vision_model"} <= set(vitdense.list_backbones("hf/*"))

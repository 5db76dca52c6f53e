"""Rasters through tools/predict.py: a checkpoint of four channels, options, results and messages."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense import checkpoint
from vitdense.build import build_model
from vitdense.loading import load_model
from vitdense.recipe import load_recipe

Tool = Callable[..., int]
RECIPE = """
backbone: {name: vit_nano_patch8, depth: 1, embed_dim: 16, num_heads: 2, image_size: 32, in_channels: 4,
           mean: [0.4, 0.5, 0.4, 0.3], std: [0.2, 0.2, 0.2, 0.3]}
head: {name: linear, num_classes: 3}
data: {name: shapes}
inference: {mode: sliding, window: 32}
schedule: {steps: 1}
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint with fresh weights."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "small.yaml")
    palette = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    model = build_model(recipe, ["sea", "land", "town"], palette, [], load_weights=False)
    facts = {"metrics": {}, "classes": ["sea", "land", "town"], "palette": palette, "category_ids": []}
    writers = {
        checkpoint.WEIGHTS: checkpoint.write_tensors(model.state_dict()),
        checkpoint.RECIPE: checkpoint.write_text(recipe.to_yaml()),
    }
    return checkpoint.save(tmp_path / "run", 1, writers, facts)


def test_rasters_are_predicted_with_their_options(
    run_tool: Tool, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.random.default_rng(0).integers(0, 3000, (5, 70, 90)).astype(np.uint16)
    values[:, :40, :40] = 0
    np.save(tmp_path / "scene.npy", values)
    out = tmp_path / "out"
    options = ("--raster", "scale=3000", "nodata=0", "channels=3,0,1,2", "layout=chw")
    assert run_tool("predict", saved, tmp_path / "scene.npy", "--out", out, *options) == 0
    printed = capsys.readouterr().out
    assert "masks/scene.npy: 12 windows, 1 of them without pixels" in printed.replace("\n", "")
    found = np.load(out / "masks/scene.npy")
    assert (found[:40, :40] == 255).all()
    assert set(np.unique(found).tolist()) <= {0, 1, 2, 255}
    picked = torch.from_numpy(values[[3, 0, 1, 2]].astype(np.float32) / 3000)
    mean = torch.tensor([0.4, 0.5, 0.4, 0.3]).view(4, 1, 1)
    filled = torch.where(torch.from_numpy((values[[3, 0, 1, 2]] == 0).all(0)), mean, picked)
    model = load_model(saved)
    from vitdense.inference import infer

    with torch.no_grad():
        whole = infer(model, {"images": filled[None], "sizes": [(70, 90)]}, model.inference)[0].numpy()
    assert np.array_equal(found[found != 255], whole[found != 255])
    with Image.open(out / "overlays/scene.jpg") as overview:
        assert overview.width > 500

    assert run_tool("predict", saved, tmp_path / "scene.npy", "--out", out, *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["results"] == [str(out / "masks/scene.npy")]


def test_what_does_not_fit_is_one_message(
    run_tool: Tool, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "scene.npy", np.zeros((70, 90, 3), np.uint8))
    assert run_tool("predict", saved, tmp_path / "scene.npy", "--out", tmp_path / "out") == 2
    assert "(70, 90, 3) has no axis of 4 channels, which the model takes" in capsys.readouterr().err
    assert run_tool("predict", saved, tmp_path / "scene.npy", "--out", tmp_path / "out", "--raster", "skale=1") == 2
    assert "--raster skale: unknown key, did you mean 'scale'" in capsys.readouterr().err
    assert run_tool("predict", saved, tmp_path, "--out", tmp_path / "out", "--raster", "scale=1") == 2
    assert "has no axis of 4 channels" in capsys.readouterr().err


TRAINED = """
backbone: {name: vit_nano_patch8, depth: 1, embed_dim: 16, num_heads: 2, image_size: 32, in_channels: 5,
           mean: [0.5, 0.5, 0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25, 0.25, 0.25]}
head: {name: linear}
data: {name: raster_folder, root: ROOT/set, in_channels: 5, raster: {scale: 4000}, fill: [0.5, 0.5, 0.5, 0.5, 0.5],
       crop: 32, batch_size: 2, workers: 0}
inference: {mode: sliding, window: 32}
schedule: {steps: 2}
engine: {run_dir: ROOT/run, accelerator: cpu, precision: 32-true, log_every: 1, pictures: 1}
"""


def test_a_run_on_five_channels_is_trained_checked_and_predicts(
    run_tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(2):
            values = generator.integers(0, 4000, (40, 70, 5)).astype(np.uint16)
            for folder, array in (("images", values), ("annotations", (values[..., 4] > 2000).astype(np.uint8))):
                (tmp_path / "set" / folder / split).mkdir(parents=True, exist_ok=True)
                np.save(tmp_path / "set" / folder / split / f"s{number}.npy", array)
    (tmp_path / "set/classes.json").write_text('{"classes": ["low", "high"]}')
    (tmp_path / "five.yaml").write_text(TRAINED.replace("ROOT", str(tmp_path)))
    assert run_tool("train", tmp_path / "five.yaml") == 0
    assert (tmp_path / "run/samples/step-2.png").exists()
    capsys.readouterr()
    raster = tmp_path / "set/images/val/s0.npy"
    assert run_tool("predict", tmp_path / "run/best", raster, "--out", tmp_path / "out", "--raster", "scale=4000") == 0
    assert set(np.unique(np.load(tmp_path / "out/masks/s0.npy")).tolist()) <= {0, 1}
    assert run_tool("check", tmp_path / "five.yaml") == 0
    assert "40x70" in capsys.readouterr().out

"""Towers that were trained under one head go under others, by the name of the run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vitdense
from vitdense import checkpoint
from vitdense.build import AdaptedBackbone, build_model
from vitdense.contracts import Backbone
from vitdense.engine import fit
from vitdense.errors import CheckpointError, UserError, WeightsError
from vitdense.recipe import Recipe, load_recipe
from vitdense.runs import find_run

CLIP = """
backbone: {name: vit_nano_patch8, depth: 2, layer_norm_eps: 1.0e-3, image_size: 32}
head: {name: clip, dim: 16, text: {name: clip_text_nano, depth: 1, context: 16}}
data: {name: shapes_captions, size: 32, train_size: 12, val_size: 4, batch_size: 4, eval_batch_size: 2, workers: 0}
metric: {name: retrieval}
optim: {lr: 1.0e-2}
schedule: {steps: 2, warmup: 1}
engine: {log_every: 1, eval_every: 2, save_every: 1, accelerator: cpu, precision: 32-true, pictures: 0}
"""
DENSE = """
backbone: {name: vit_nano_patch8, depth: 2, out_indices: [0, 1], weights: RUN}
head: {name: HEAD}
data: {name: shapes, size: 32, train_size: 4, val_size: 2, batch_size: 2}
schedule: {steps: 1}
"""


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    """The folder of a run of two steps."""

    def run(*overrides: str, text: str = CLIP) -> Path:
        (tmp_path / "trained.yaml").write_text(text)
        fit(load_recipe(tmp_path / "trained.yaml", [f"engine.run_dir={tmp_path / 'run'}", *overrides]))
        return tmp_path / "run"

    return run


def tensors(run: Path, prefix: str = "backbone.", *, averaged: bool = False) -> dict[str, Tensor]:
    """What the last checkpoint of a run holds below a prefix."""
    state = checkpoint.open_checkpoint(run).weights(averaged=averaged)
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def assert_same(backbone: Backbone, expected: dict[str, Tensor]) -> None:
    own = backbone.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in own.items())


def recipe_of(folder: Path, head: str, run: Path | str, *overrides: str) -> Recipe:
    (folder / "dense.yaml").write_text(DENSE.replace("HEAD", head).replace("RUN", str(run)))
    return load_recipe(folder / "dense.yaml", overrides)


def test_a_tower_of_clip_goes_under_dense_heads(train: Callable[..., Path], tmp_path: Path) -> None:
    run = train()
    expected = tensors(run)
    moved = torch.stack([tensor.std() for key, tensor in expected.items() if key.endswith("qkv.bias")])
    assert moved.min() > 0  # biases start at 0: the run has taught the tower
    for head, *options in (
        ("linear",),
        ("upernet", "adapter={name: simple_pyramid, channels: 16}", "backbone.out_indices=[1]"),
    ):
        recipe = recipe_of(tmp_path, head, run / "best", *options)
        backbone = build_model(recipe, ["a", "b"]).backbone
        plain = backbone.backbone if isinstance(backbone, AdaptedBackbone) else backbone
        assert_same(plain, expected)
        assert plain.config is not None
        assert plain.config.model_dump()["layer_norm_eps"] == 1e-3
    report = vitdense.create_backbone("vit_nano_patch8", depth=2, weights=run / "last").load_report
    assert report is not None
    assert report.family == "vitdense"
    assert report.source == str(run / "step-2")
    assert "head.logit_scale" in report.left_out
    assert len(report.matched) == len(expected)
    assert not report.fresh


def test_averaged_weights_are_taken_where_the_run_kept_them(train: Callable[..., Path]) -> None:
    run = train("engine.ema=0.5")
    backbone = vitdense.create_backbone("vit_nano_patch8", depth=2, weights=str(run))
    assert_same(backbone, tensors(run, averaged=True))
    assert not torch.equal(backbone.state_dict()["pos_embed"], tensors(run)["pos_embed"])
    assert backbone.load_report is not None
    assert backbone.load_report.source == f"{run / 'step-2'} (EMA)"
    assert_same(vitdense.load_model(run).backbone, tensors(run, averaged=True))


def test_what_stood_under_an_adapter_comes_without_it(train: Callable[..., Path], tmp_path: Path) -> None:
    recipe = DENSE.replace("HEAD", "linear").replace(", weights: RUN", "")
    run = train(
        "adapter={name: simple_pyramid, channels: 16}",
        "backbone.out_indices=[1]",
        "engine.accelerator=cpu",
        text=recipe,
    )
    assert_same(
        vitdense.create_backbone("vit_nano_patch8", depth=2, weights=run / "step-1"), tensors(run, "backbone.backbone.")
    )


def test_a_backbone_of_the_same_name_is_built_as_in_the_run(train: Callable[..., Path]) -> None:
    run = train("backbone.drop_path=0.1")
    config = vitdense.create_backbone("vit_nano_patch8", weights=run).config
    assert config is not None
    options = config.model_dump()
    assert (options["depth"], options["image_size"], options["drop_path"]) == (2, 32, 0.0)
    report = vitdense.create_backbone("vit_nano_patch8", image_size=48, weights=run).load_report
    assert report is not None
    assert report.resized == ("pos_embed",)


def test_a_tower_that_does_not_fit_is_one_error(train: Callable[..., Path], tmp_path: Path) -> None:
    run = train()
    with pytest.raises(WeightsError, match=r"step-2 \[vitdense\] .*vit_nano_patch8.*: 24 missing: blocks\.2\.norm1"):
        vitdense.create_backbone("vit_nano_patch8", depth=4, weights=run / "best")
    with pytest.raises(WeightsError, match=r"step-2 \[vitdense\] .*swin_nano"):
        vitdense.create_backbone("swin_nano", weights=run / "best")
    with pytest.raises(WeightsError, match="has 2 attention heads, and num_heads is 4 here"):
        vitdense.create_backbone("vit_nano_patch8", depth=2, num_heads=4, weights=run)
    (run / "step-2" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        vitdense.create_backbone("vit_nano_patch8", depth=2, weights=run / "last")
    with pytest.raises(UserError, match="no such file or folder"):
        vitdense.create_backbone("vit_nano_patch8", weights=tmp_path / "none" / "best")


def test_other_sources_are_no_runs(tmp_path: Path) -> None:
    assert find_run("default") is None
    assert find_run("timm/vit_tiny_patch16_224.augreg_in21k") is None
    assert find_run({"x": torch.ones(1)}) is None
    assert find_run(tmp_path) is None
    assert find_run(tmp_path / "best") is None

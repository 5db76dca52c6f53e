"""Depth through the commands: train, evaluate, predict and score a model without classes, and films frame by frame."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.contracts import HEADS, Batch, Head, HeadConfig, Level, Outputs, Predictions

Tool = Callable[..., int]
RECIPE = """
backbone: {name: swin_nano, depths: [1, 1, 1, 1], embed_dim: 8, num_heads: [1, 1, 2, 2]}
head: {name: tiny_depth}
data: {name: rgbd, root: ROOT/frames, val_every: 3, batch_size: 4, workers: 0, crop: 32}
metric: {name: depth}
schedule: {steps: 2}
engine: {run_dir: ROOT/run, accelerator: cpu, precision: 32-true, log_every: 1, pictures: 1}
"""


class TinyDepthConfig(HeadConfig):
    """A head for these tests alone."""

    def build(self, levels: tuple[Level, ...]) -> "TinyDepth":
        return TinyDepth(levels)


class TinyDepth(Head):
    """One convolution on the finest map."""

    dense = "depth"
    num_classes = 0

    def __init__(self, levels: tuple[Level, ...]) -> None:
        super().__init__()
        self.out = nn.Conv2d(levels[0].channels, 1, 1)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        return {"depth": F.softplus(self.out(features[0])) + 1e-2}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        depth = F.interpolate(outputs["depth"], batch["depth"].shape[-2:], mode="bilinear")[:, 0]  # (B, H, W)
        return {"loss_l1": ((depth - batch["depth"]).abs() * (batch["depth"] > 0)).mean()}

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        return [
            F.interpolate(depth[None].float(), size, mode="bilinear")[0, 0]
            for depth, size in zip(outputs["depth"], batch["sizes"], strict=True)
        ]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe over six 40 x 48 pictures with depth; the head is known to this test alone."""
    HEADS.names()
    monkeypatch.setitem(HEADS._entries, "tiny_depth", (TinyDepthConfig, {}))
    generator = np.random.default_rng(0)
    (tmp_path / "frames").mkdir()
    for number in range(6):
        noise = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "frames" / f"p{number}.color.jpg")
        depth = generator.integers(500, 5000, (40, 48)).astype(np.uint16)
        depth[:4] = 0
        Image.fromarray(depth).save(tmp_path / "frames" / f"p{number}.depth.png")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("ROOT", str(tmp_path)))
    return path


def test_train_evaluate_predict_and_score_agree(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("train", recipe, "--json") == 0
    trained = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "run" / "step-2" / "manifest.json").read_text())["classes"] == []
    assert run_tool("evaluate", tmp_path / "run" / "best", "--json") == 0
    evaluated = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert evaluated["abs_rel"] == trained["abs_rel"]
    with Image.open(tmp_path / "run" / "samples" / "step-2.png") as panel:
        assert panel.width == 4 * 560 + 3 * 16 + 2 * 28
    pictures, out = [tmp_path / "frames" / f"p{number}.color.jpg" for number in (0, 3)], tmp_path / "out"
    assert run_tool("predict", tmp_path / "run", *pictures, "--out", out) == 0
    with Image.open(out / "depth" / "p0.color.png") as depth:
        assert depth.mode.startswith("I;16")
        assert depth.size == (48, 40)
    assert len(list((out / "overlays").iterdir())) == 2
    capsys.readouterr()
    assert run_tool("score", "depth", tmp_path / "frames", out / "depth", "--scale", "1000", "--json") == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["pictures"] == 2
    for name in ("abs_rel", "rmse", "silog_x100"):
        assert scored[name] == pytest.approx(evaluated[name], rel=2e-3)  # files hold whole millimetres


def test_windows_scales_and_flips_work_from_the_command_line(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("train", recipe) == 0
    options = ("inference.mode=sliding", "inference.window=24", "inference.scales=[0.5,1.0]", "inference.flip=true")
    capsys.readouterr()
    assert run_tool("evaluate", tmp_path / "run", *options, "--json") == 0
    assert 0 < json.loads(capsys.readouterr().out.splitlines()[-1])["abs_rel"] < 2


def test_a_metric_of_classes_is_refused_before_training(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("train", recipe, "metric.name=miou") == 2
    assert "metric 'miou' needs a data set with classes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_count_of_classes_is_refused_where_the_data_have_none(
    run_tool: Tool, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("train", recipe, "head.num_classes=5") == 2
    assert "head.num_classes is 5, but the data set has 0 classes; leave it out" in capsys.readouterr().err


def test_several_sizes_without_a_crop_name_the_option(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, values in (("color.jpg", np.zeros((50, 60, 3), np.uint8)), ("depth.png", np.full((50, 60), 900, "u2"))):
        Image.fromarray(values).save(tmp_path / "frames" / f"p1.{kind}")
    assert run_tool("train", recipe, "data.crop=null") == 2
    assert "pictures of different sizes in one batch (40x48, 50x60)" in capsys.readouterr().err


def test_the_check_command_tells_how_much_is_measured(
    run_tool: Tool, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("check", recipe, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val"]["ignored"] == pytest.approx(0.1)
    assert found["train"]["classes"]["measured"]["pictures"] == 4


def test_without_pyav_a_video_is_refused_with_what_to_do(
    run_tool: Tool,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run_tool("train", recipe) == 0
    (tmp_path / "walk.mp4").write_bytes(b"nothing")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert run_tool("predict", tmp_path / "run", tmp_path / "walk.mp4", "--out", tmp_path / "out") == 2
    assert "walk.mp4: videos need PyAV; `pip install av`, or give a folder of frames" in capsys.readouterr().err


def test_a_video_is_predicted_frame_by_frame(run_tool: Tool, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from vitdense.videos import Film, read_frames

    assert run_tool("train", recipe) == 0
    with Film(tmp_path / "walk.mp4", Fraction(10)) as film:
        for number in range(3):
            film.add(np.full((41, 48, 3), 60 * number, np.uint8))
    assert run_tool("predict", tmp_path / "run", tmp_path / "walk.mp4", "--out", tmp_path / "out") == 0
    names = [path.name for path in sorted((tmp_path / "out" / "depth" / "walk").iterdir())]
    assert names == ["000000.png", "000001.png", "000002.png"]
    assert [frame.shape for frame in read_frames(tmp_path / "out" / "overlays" / "walk.mp4")] == [(40, 96, 3)] * 3


def test_a_damaged_video_is_named(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    assert run_tool("train", recipe) == 0
    (tmp_path / "walk.mp4").write_bytes(b"nothing")
    assert run_tool("predict", tmp_path / "run", tmp_path / "walk.mp4", "--out", tmp_path / "out") == 2
    assert "walk.mp4: damaged video" in capsys.readouterr().err


def test_predict_gives_metres_at_the_pictures_size(run_tool: Tool, recipe: Path, tmp_path: Path) -> None:
    from vitdense.loading import load_model

    assert run_tool("train", recipe) == 0
    model = load_model(tmp_path / "run")
    assert model.classes == ()
    depth = model.predict([np.zeros((37, 51, 3), np.uint8)])[0]
    assert depth.shape == (37, 51)
    assert depth.dtype == torch.float32

"""The main job through its commands: train, evaluate and predict on files, and one clear message for each mistake."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense import checkpoint

ROOT = Path(__file__).parents[2]
Tool = Callable[..., int]
RECIPE = """
backbone: {name: swin_nano, depths: [1, 1, 1, 1], embed_dim: 8, num_heads: [1, 1, 2, 2]}
head: {name: upernet, channels: 8, auxiliary_channels: 8}
data: {name: folder, root: ROOT, batch_size: 4, workers: 0, crop: 32}
schedule: {steps: 2}
engine: {run_dir: ROOT/run, accelerator: cpu, precision: 32-true, log_every: 1, pictures: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe over six 40 x 48 pictures in each split, with three classes."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        for number in range(6):
            noise = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "images" / split / f"p{number}.jpg")
            mask = generator.integers(0, 3, (40, 48), dtype=np.uint8)
            Image.fromarray(mask).save(tmp_path / "annotations" / split / f"p{number}.png")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"], "ignore_index": 255}))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("ROOT", str(tmp_path)))
    return path


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    errors = [line for line in capsys.readouterr().err.split("error: ")[1:]]
    assert len(errors) == 1
    assert "Traceback" not in errors[0]
    return errors[0]


def test_train_evaluate_and_predict(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("train", recipe, "--json") == 0
    trained = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert trained["step"] == 2
    assert run_tool("evaluate", tmp_path / "run" / "best", "--json") == 0
    evaluated = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert evaluated["mIoU"] == trained["mIoU"]
    assert evaluated["classes"] == ["a", "b", "c"]
    pictures, out = tmp_path / "images" / "val", tmp_path / "out"
    assert run_tool("predict", tmp_path / "run", pictures, "--out", out) == 0
    with Image.open(out / "masks" / "p0.png") as mask:
        assert (mask.mode, mask.size) == ("P", (48, 40))
    assert len(list((out / "overlays").iterdir())) == 6


def test_predictions_score_what_evaluation_says(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("train", recipe) == 0
    assert run_tool("predict", tmp_path / "run", tmp_path / "images" / "val", "--out", tmp_path / "out") == 0
    capsys.readouterr()
    assert run_tool("evaluate", tmp_path / "run", "--json") == 0
    evaluated = json.loads(capsys.readouterr().out.splitlines()[-1])
    truth = tmp_path / "annotations" / "val"
    assert run_tool("score", "miou", truth, tmp_path / "out" / "masks", "--classes", "3", "--json") == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["mIoU"] == pytest.approx(evaluated["mIoU"], abs=1e-12)
    assert scored["IoU"] == pytest.approx(evaluated["IoU"], abs=1e-12)


def test_a_dry_run_ends_with_a_forecast(run_tool: Tool, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("train", recipe, "--dry-run", "schedule.steps=500") == 0
    assert "dry run passed: " in capsys.readouterr().out


def test_resume_goes_on_where_the_run_stopped(run_tool: Tool, recipe: Path, tmp_path: Path) -> None:
    assert run_tool("train", recipe) == 0
    assert run_tool("train", recipe, "schedule.steps=4", "--resume", "auto") == 0
    assert checkpoint.open_checkpoint(tmp_path / "run").step == 4


def test_misspelt_keys_are_said_at_once(run_tool: Tool, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("train", recipe, "optim.lrr=1", "head.chanels=3", "data.workers=many") == 2
    message = error_of(capsys)
    assert "3 faults" in message
    assert all(key in message for key in ("optim.lrr", "head.chanels", "data.workers"))


def test_missing_ade20k_says_how_to_get_it(run_tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = f"data.root={tmp_path / 'nowhere'}"
    assert run_tool("train", ROOT / "tasks" / "ade20k_swin.yaml", root, f"engine.run_dir={tmp_path / 'run'}") == 2
    message = error_of(capsys)
    assert "python tools/prepare.py ade20k" in message
    assert not (tmp_path / "run").exists()


def test_a_value_without_a_class_stops_before_training(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "annotations" / "train" / "p3.png"
    Image.fromarray(np.full((40, 48), 77, np.uint8)).save(path)
    assert run_tool("train", recipe) == 2
    message = error_of(capsys)
    assert str(path) in message
    assert "77" in message
    assert not (tmp_path / "run" / "step-2").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_jpeg_stops_the_run(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "images" / "train" / "p1.jpg"
    truncate(path)
    assert run_tool("train", recipe, "data.workers=1", "schedule.steps=4") == 2
    assert str(path) in error_of(capsys)


def test_a_truncated_jpeg_is_skipped_and_counted(run_tool: Tool, recipe: Path, tmp_path: Path) -> None:
    truncate(tmp_path / "images" / "train" / "p1.jpg")
    assert run_tool("train", recipe, "data.on_bad_sample=skip", "data.workers=1", "schedule.steps=4") == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(line).get("skipped", 0) for line in lines) >= 1


def test_a_flipped_byte_in_a_checkpoint_is_found(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("train", recipe) == 0
    path = tmp_path / "run" / "step-2" / checkpoint.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    for tool, *more in (("evaluate",), ("predict", tmp_path / "images", "--out", tmp_path / "out")):
        assert run_tool(tool, tmp_path / "run", *more) == 2
        assert f"the content of {path} differs from its manifest" in error_of(capsys)


def test_a_wrong_class_count_is_found(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("train", recipe, "head.num_classes=5") == 2
    assert "head.num_classes is 5, but the data set has 3 classes (a, b, c)" in error_of(capsys)


def test_a_checkpoint_meets_other_classes(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("train", recipe) == 0
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b", "d"], "ignore_index": 255}))
    assert run_tool("evaluate", tmp_path / "run") == 2
    assert "knows the classes a, b, c; the data set has a, b, d" in error_of(capsys)


def test_bad_pictures_stop_or_are_named(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("train", recipe) == 0
    folder, out = tmp_path / "images" / "val", tmp_path / "out"
    truncate(folder / "p2.jpg")
    assert run_tool("predict", tmp_path / "run", folder, "--out", out) == 2
    assert str(folder / "p2.jpg") in error_of(capsys)
    assert run_tool("predict", tmp_path / "run", folder, "--out", out, "--on-bad-picture", "skip", "--json") == 0
    assert json.loads(capsys.readouterr().out)["written"] == 5
    assert run_tool("predict", tmp_path / "run", tmp_path / "gone", "--out", out) == 2
    assert "gone: no such file or folder" in error_of(capsys)


def test_as_a_process_a_mistake_is_one_message_and_exit_2(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: no recipe at {tmp_path / 'none.yaml'}"

"""tools/predict.py --explain: sheets and arrays for pictures, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import heads
import vitdense
from vitdense import cli
from vitdense.model import Model


@pytest.fixture
def explain(load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The exit code of the command with these arguments, of a small model in place of a trained one."""
    backbone = vitdense.create_backbone("vit_nano_patch8")
    model = Model(backbone, heads.create_head("linear", backbone.levels, num_classes=2), classes=("a", "b"))
    tool = load_tool("predict")
    monkeypatch.setattr(tool, "load_model", lambda name, overrides: model)
    return lambda *given: cli.run(tool.main, ["runs/x/best", *map(str, given)])


@pytest.mark.parametrize(("kind", "shape"), [("attention", (2, 8, 12)), ("rollout", (8, 12)), ("pca", (3, 8, 12))])
def test_a_sheet_and_an_array_for_each_picture(
    kind: str, shape: tuple[int, ...], explain: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(tmp_path / "p.png")
    assert explain(tmp_path / "p.png", "--out", tmp_path / "o", "--explain", kind) == 0
    assert capsys.readouterr().out == f"1 pictures -> {tmp_path / 'o' / kind}\n"
    assert np.load(tmp_path / "o" / kind / "p.npy").shape == shape
    with Image.open(tmp_path / "o" / kind / "p.jpg") as drawn:
        assert drawn.width > 1000
        assert len(set(drawn.convert("L").tobytes())) > 50


def test_a_film_is_refused(explain: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v.mp4").write_bytes(b"")
    assert explain(tmp_path / "v.mp4", "--out", tmp_path / "o", "--explain", "pca") == 2
    assert "explanations are of pictures" in capsys.readouterr().err


def test_a_wrong_query_is_told(explain: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "p.png")
    assert explain(tmp_path, "--out", tmp_path, "--explain", "attention", "--query", "left") == 2
    assert "expected cls, mean, or ROW,COLUMN" in capsys.readouterr().err

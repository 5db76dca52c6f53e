"""tools/slides.py: a list of slides to features and scores, by a backbone with weights and by a whole model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitdense
from vitdense.benchmarking.suite.maps import enliven

Tool = Callable[..., int]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six slides, dark and bright."""
    rows = ["file,label,split"]
    for number in range(6):
        level = 60 + 90 * (number % 2)
        pixels = np.random.default_rng(number).integers(level - 30, level + 30, (40, 70, 3), dtype=np.uint8)
        np.save(tmp_path / f"s{number}.npy", pixels)
        rows.append(f"s{number}.npy,{('dark', 'bright')[number % 2]},{'test' if number > 3 else 'train'}")
    (tmp_path / "slides.csv").write_text("\n".join(rows))
    return tmp_path / "slides.csv"


def test_a_backbone_with_weights(
    run_tool: Tool, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small: Any = {"depth": 1, "embed_dim": 16, "image_size": 32}
    torch.save(enliven(vitdense.create_backbone("vit_nano_patch8", **small)).state_dict(), tmp_path / "vit.pt")
    given = ("--weights", tmp_path / "vit.pt", "--set", "depth=1", "--set", "embed_dim=16", "--set", "image_size=32")
    command = ("slides", "vit_nano_patch8", table, "--out", tmp_path / "out", *given)
    assert run_tool(*command, "--json", "--tiles", "tile=32") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["slides"] == 6
    assert told["scores"]["test"]["linear_top1"] == 1.0
    assert run_tool(*command, "--tiles", "tile=32", "pool=mean_std") == 0
    assert np.load(told["features"])["features"].shape == (6, 32)
    printed = capsys.readouterr().out
    assert "6 slides, 36 tiles" in printed
    assert "test: slides 2, knn_top1" in printed


def test_a_published_model(
    run_tool: Tool, publish_clip: Callable[[Path], Any], table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_clip(tmp_path / "clip")
    assert run_tool("slides", tmp_path / "clip", table, "--out", tmp_path / "out", "--tiles", "tile=40", "--json") == 0
    assert json.loads(capsys.readouterr().out)["scores"]["test"]["slides"] == 2
    assert run_tool("slides", tmp_path / "clip", table, "--out", tmp_path / "out", "--tiles", "pool=median") == 2
    assert "--tiles pool: input should be 'mean', 'max' or 'mean_std'" in capsys.readouterr().err

"""The check command: a table and exit code 0 for clean data, the faults and exit code 2 for the rest."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vitdense import cli

RECIPE = """
backbone: {name: swin_tiny}
head: {name: linear}
data: {name: folder, root: ROOT}
schedule: {steps: 1}
"""


@pytest.fixture(scope="module")
def check(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    """The command's module."""
    return load_tool("check")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe over one 8 x 8 picture in each split."""
    for split in ("train", "val"):
        for folder in ("images", "annotations"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / split / "a.jpg")
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "annotations" / split / "a.png")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["road", "car"]}))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("ROOT", str(tmp_path)))
    return path


def test_clean_data_prints_a_table_for_each_split(
    check: ModuleType, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(check.main, [str(recipe)]) == 0
    printed = capsys.readouterr()
    assert "train: 1 pictures, 8x8 (1), 0.0% ignored" in printed.out
    assert "100.00%" in printed.out
    assert printed.err.strip() == ""


def test_faults_are_listed_with_their_split_and_end_with_2(
    check: ModuleType, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = recipe.parent / "annotations" / "val" / "a.png"
    Image.fromarray(np.full((8, 8), 5, np.uint8)).save(bad)
    assert cli.run(check.main, [str(recipe)]) == 2
    assert f"val: {bad}: values without a class: 5; allowed: 0..1" in capsys.readouterr().err


def test_json_is_one_object_and_overrides_are_taken(
    check: ModuleType, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(check.main, [str(recipe), "--json", "data.ignore_index=0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val"]["pictures"] == 1
    assert found["val"]["ignored"] == 1.0
    assert found["train"]["faults"] == []


def test_missing_data_is_one_message_and_ends_with_2(
    check: ModuleType, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(check.main, [str(recipe), "data.root=/nowhere"]) == 2
    assert "error: /nowhere/images/train: no such folder" in capsys.readouterr().err

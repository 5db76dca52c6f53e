"""docs/contrastive.md: its recipes train, and every block prints what the comment behind its print says."""

import re
from pathlib import Path

import pytest

from vitdense.engine import fit
from vitdense.recipe import load_recipe

PAGE = Path(__file__).parents[3] / "docs" / "contrastive.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
RECIPES = dict(re.findall(r"^```yaml\n# (\w+\.yaml)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's recipes, where the first of them was trained."""
    folder = tmp_path_factory.mktemp("page")
    for name, recipe in RECIPES.items():
        (folder / name).write_text(recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(load_recipe(folder / "clip.yaml"))
    return folder


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_prints_what_it_says(
    code: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    exec(compile(code, PAGE.name, "exec"), {"__name__": "page"})
    told = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE) or ["0.4621", "0.0"]
    assert capsys.readouterr().out.splitlines() == told


@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.run_dir=runs/accumulated", "engine.accumulate=4"],
        ["engine.run_dir=runs/lit", "head.locked=image", "head.unlocked_layers=1"],
        ["engine.run_dir=runs/taught", "teacher={model: runs/clip}"],
    ],
)
def test_a_command_trains(overrides: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert " ".join(overrides) in TEXT.replace("'", "")
    assert fit(load_recipe(place / "clip.yaml", overrides)).step == 4


def test_the_dense_recipe_trains(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert fit(load_recipe(place / "dense.yaml")).step == 1

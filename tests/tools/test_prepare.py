"""The prepare command: its exit code and its one message; the download itself is tested beside the library."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from vitdense import cli


@pytest.fixture(scope="module")
def prepare(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    """The command's module."""
    return load_tool("prepare")


def test_a_data_set_that_is_there_is_only_checked(
    prepare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("training", "validation"):
        for folder, mode, suffix in (("images", "RGB", "jpg"), ("annotations", "L", "png")):
            path = tmp_path / "ADEChallengeData2016" / folder / part / f"a.{suffix}"
            path.parent.mkdir(parents=True)
            Image.new(mode, (8, 8)).save(path)
    assert cli.run(prepare.main, ["ade20k", str(tmp_path)]) == 0
    assert "1 train, 1 val" in capsys.readouterr().out


def test_an_unknown_data_set_is_one_message_and_ends_with_2(
    prepare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(prepare.main, ["coco", str(tmp_path)]) == 2
    assert "error: no download for 'coco'; known: ade20k" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

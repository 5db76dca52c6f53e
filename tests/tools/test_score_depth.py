"""The score command on depth: the reference's numbers from files, pairing, and one message for each thing wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vitdense import cli


@pytest.fixture(scope="module")
def score(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    """The command's module."""
    return load_tool("score")


def save(path: Path, metres: list[list[float]], scale: float = 1000, dtype: type = np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(metres) * scale).astype(dtype)).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for number in (1, 2):
        save(tmp_path / "truth" / "hall" / f"{number}.depth.png", [[1, 2], [4, 0]])
        save(tmp_path / "predictions" / "hall" / f"{number}.pred.png", [[1, 2], [5, 7]])
    return tmp_path / "truth", tmp_path / "predictions"


def scores(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path], *flags: str
) -> dict[str, object]:
    assert cli.run(score.main, ["depth", *map(str, folders), "--scale", "1000", *flags, "--json"]) == cli.DONE
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def message(score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path], *flags: str) -> str:
    assert cli.run(score.main, ["depth", *map(str, folders), "--scale", "1000", *flags]) == cli.MISTAKE
    return capsys.readouterr().err


@pytest.mark.parametrize(("section", "flags"), [("metric", ()), ("lsq_scale_shift_in_depth", ("--align",))])
def test_gives_the_numbers_of_a_reference(
    score: ModuleType, capsys: pytest.CaptureFixture[str], shared_data: Path, section: str, flags: tuple[str, ...]
) -> None:
    reference = shared_data / "eval_reference" / "rgbd_7scenes"
    expected = json.loads((reference / "expected.json").read_text())
    result = scores(score, capsys, (shared_data / "rgbd_7scenes", reference / "pred"), *flags)
    assert (result["images"], result["missing"]) == (expected["images"], 30)
    for name, value in expected[section].items():
        assert result[name] == pytest.approx(value, abs=1e-6), name


def test_range_and_crop_choose_what_counts(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    assert scores(score, capsys, folders)["abs_rel"] == pytest.approx(0.25 / 3)
    assert scores(score, capsys, folders, "--max", "4")["abs_rel"] == 0
    assert scores(score, capsys, folders, "--min", "2")["abs_rel"] == 0.25
    assert scores(score, capsys, folders, "--crop", "eigen")["abs_rel"] == 0  # of two rows and columns, the first


def test_names_up_to_the_first_dot_belong_together(
    score: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("truth/a.png", "predictions/a.anything.png"):
        save(tmp_path / name, [[1, 2]])
    assert scores(score, capsys, (tmp_path / "truth", tmp_path / "predictions"))["d1"] == 1
    Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(tmp_path / "truth" / "a.color.png")
    assert "have one name, 'a'" in message(score, capsys, (tmp_path / "truth", tmp_path / "predictions"))
    (tmp_path / "truth" / "a.png").rename(tmp_path / "truth" / "a.metres.png")
    flags = ("--truth-suffix", ".metres.png")
    assert scores(score, capsys, (tmp_path / "truth", tmp_path / "predictions"), *flags)["d1"] == 1


def test_a_given_suffix_is_all_that_the_name_lacks(
    score: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for number in (1, 2):
        save(tmp_path / "truth" / f"walk.{number}.depth.png", [[1, number]])
        save(tmp_path / "predictions" / f"walk.{number}.png", [[1, number]])
    folders = (tmp_path / "truth", tmp_path / "predictions")
    assert "have one name, 'walk'" in message(score, capsys, folders)
    result = scores(score, capsys, folders, "--truth-suffix", ".depth.png", "--prediction-suffix", ".png")
    assert (result["d1"], result["pictures"], result["rmse"]) == (1, 2, 0)


def test_faults_are_named_with_their_files(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    save(folders[1] / "hall" / "1.pred.png", [[1, 2, 3]])
    save(folders[1] / "hall" / "2.pred.png", [[1, 2], [3, 4]], scale=10, dtype=np.uint8)
    text = message(score, capsys, folders)
    assert "hall/1.pred.png is (1, 3)" in text
    assert "hall/2.pred.png: a depth map is a grey PNG or TIFF of 16 bits, this file has 8" in text


def test_a_prediction_without_truth_is_a_mistake(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    save(folders[1] / "3.pred.png", [[1]])
    assert "holds 1 predictions without truth" in message(score, capsys, folders)


def test_a_range_without_a_pixel_is_a_mistake(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    assert "not one pixel of 2 depth maps counts" in message(score, capsys, folders, "--min", "50")


@pytest.mark.parametrize("flags", [("--min", "-1"), ("--min", "5", "--max", "2")])
def test_a_range_that_is_none_is_a_mistake(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path], flags: tuple[str, ...]
) -> None:
    assert f"'min_depth': {float(flags[1])}" in message(score, capsys, folders, *flags)


@pytest.mark.parametrize("scale", ["0", "-1", "inf", "many"])
def test_a_scale_must_be_a_positive_number(score: ModuleType, folders: tuple[Path, Path], scale: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        score.main(["depth", *map(str, folders), "--scale", scale])
    assert stopped.value.code == cli.MISTAKE


def test_the_summary_is_one_line_without_json(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    assert cli.run(score.main, ["depth", *map(str, folders), "--scale", "1000"]) == cli.DONE
    assert capsys.readouterr().out.startswith("d1 0.6667  d2 1.0000  d3 1.0000  abs_rel 0.0833")

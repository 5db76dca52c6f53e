"""The score command: official numbers from files, and one clear message for each thing wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vitdense import cli

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def score(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    """The command's module."""
    return load_tool("score")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for folder in ("truth", "predictions"):
        save(tmp_path / folder / "town" / "a.png", [[0, 1], [2, 255]])
    return tmp_path / "truth", tmp_path / "predictions"


def save(path: Path, values: list[list[int]], dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype=dtype)).save(path)


def scores(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path], *flags: str
) -> dict[str, object]:
    arguments = ["miou", *map(str, folders), *flags, "--json"]
    assert cli.run(score.main, arguments) == cli.DONE
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def message(score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path], *flags: str) -> str:
    assert cli.run(score.main, ["miou", *map(str, folders), *flags]) == cli.MISTAKE
    return capsys.readouterr().err


@pytest.mark.skipif(not (DATA / "ade20k_sample").is_dir(), reason="needs the sample data")
def test_gives_the_numbers_of_ade20ks_devkit(score: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    folders = (DATA / "ade20k_sample" / "annotations", DATA / "ade20k_sample" / "predictions")
    for flags in (("--reduce-zero-label",), ("--ignore", "0")):
        result = scores(score, capsys, folders, "--classes", "150", *flags)
        assert (result["mIoU"], result["aAcc"], result["images"]) == (0.1, 1.0, 3)
        assert scores(score, capsys, folders, "--classes", "150", *flags, "--average", "present")["mIoU"] == 1.0


@pytest.mark.skipif(not (DATA / "eval_reference").is_dir(), reason="needs the sample data")
def test_gives_the_numbers_of_a_reference_on_camvid(score: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    reference = DATA / "eval_reference" / "camvid_val"
    expected = json.loads((reference / "expected.json").read_text())
    folders = (DATA / "camvid" / "annotations" / "val", reference / "pred")
    result = scores(score, capsys, folders, "--classes", "11", "--ignore", "11")
    assert result["images"] == expected["images"]
    got = [result["mIoU"], result["mAcc"], result["aAcc"]]
    assert got == pytest.approx([expected["mIoU_union_gt0"], expected["mAcc"], expected["aAcc"]], abs=1e-6)
    assert result["IoU"] == pytest.approx(expected["IoU"], abs=1e-6)


def test_ignored_values_are_left_out(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    result = scores(score, capsys, folders, "--classes", "4", "--ignore", "255")
    assert (result["mIoU"], result["pixels"], result["IoU"]) == (1.0, [1, 1, 1, 0], [1.0, 1.0, 1.0, None])


def test_an_ignored_value_predicted_on_labelled_pixels_is_wrong(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    save(folders[1] / "town" / "a.png", [[0, 255], [2, 255]])
    result = scores(score, capsys, folders, "--classes", "3", "--ignore", "255")
    assert result["IoU"] == [1.0, 0.0, 1.0]
    assert result["aAcc"] == pytest.approx(2 / 3)


def test_zero_may_be_no_label_in_the_truth_only(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    save(folders[1] / "town" / "a.png", [[0, 0], [1, 1]])
    flags = ("--classes", "2", "--ignore", "255", "--reduce-zero-label", "truth")
    assert scores(score, capsys, folders, *flags)["mIoU"] == 1.0


def test_sixteen_bit_masks_are_read(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    for folder in folders:
        save(folder / "town" / "a.png", [[0, 300], [2, 65535]], np.uint16)
    assert scores(score, capsys, folders, "--classes", "301", "--ignore", "65535")["mIoU"] == 1.0


def test_missing_predictions_are_warned_of_and_left_out(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    save(folders[0] / "b.png", [[0, 1]])
    assert cli.run(score.main, ["miou", *map(str, folders), "--classes", "3", "--ignore", "255"]) == cli.DONE
    output = capsys.readouterr()
    assert "warning: only 1 of 2 files have a prediction and are scored; missing: b" in output.err
    assert "mIoU 100.00%" in output.out


def test_a_prediction_without_truth_is_named(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    save(folders[1] / "town" / "c.png", [[0, 1]])
    assert "1 predictions without truth" in message(score, capsys, folders, "--classes", "3")


def test_sizes_that_differ_are_named_with_their_files(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    save(folders[1] / "town" / "a.png", [[0, 1, 2], [2, 2, 2]])
    text = message(score, capsys, folders, "--classes", "3", "--ignore", "255")
    assert f"{folders[1] / 'town' / 'a.png'} is (2, 3), {folders[0] / 'town' / 'a.png'} is (2, 2)" in text


def test_values_outside_are_named_with_their_file(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    text = message(score, capsys, folders, "--classes", "2", "--ignore", "9")
    assert f"{folders[0] / 'town' / 'a.png'} holds 2, 255; allowed are 0..1 and 9 (ignored)" in text


def test_all_faulty_files_are_counted(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    for index in range(8):
        for folder in folders:
            save(folder / f"{index}.png", [[7]])
    assert "... and 3 more" in message(score, capsys, folders, "--classes", "3", "--ignore", "255")


def test_two_masks_of_one_name_are_refused(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    save(folders[0] / "town" / "a.tif", [[0]])
    assert "only the suffix differs" in message(score, capsys, folders, "--classes", "3")


def test_masks_without_a_label_are_no_result(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    flags = ("--classes", "3", "--ignore", "0", "1", "2", "255")
    assert "not one pixel of 1 masks has a label" in message(score, capsys, folders, *flags)


def test_empty_and_absent_folders_are_named(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no predictions" in message(score, capsys, (folders[0], tmp_path / "empty"), "--classes", "3")
    assert "is not a folder" in message(score, capsys, (folders[0], tmp_path / "absent"), "--classes", "3")


def test_dice_and_boundary_iou_are_counted_along(
    score: ModuleType, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    save(folders[1] / "town" / "a.png", [[0, 0], [2, 1]])
    plain = scores(score, capsys, folders, "--classes", "4", "--ignore", "255")
    result = scores(score, capsys, folders, "--classes", "4", "--ignore", "255", "--dice", "--boundary")
    assert {name: result[name] for name in plain} == plain
    assert result["Dice"] == [pytest.approx(2 / 3), 0.0, 1.0, None]
    assert result["mDice"] == pytest.approx(5 / 9)
    assert result["BoundaryIoU"] == [0.5, 0.0, 1.0, None]  # in so small a picture every pixel is at a border

"""score.py boxes and masks: official numbers, ids as they are, plots, and one clear message for each mistake."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitdense import cli

Tool = Callable[..., int]
Content = dict[str, Any]
KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
FAKE = ("coco_fake100/instances_val2014_100.json", "coco_fake100/instances_val2014_fake{}100_results.json")
PUBLISHED = {
    "boxes": [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564],
    "masks": [0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381],
}
"""What the authors of COCO's tools print for their example."""


@pytest.fixture
def answer(run_tool: Tool, capsys: pytest.CaptureFixture[str]) -> Callable[..., Content]:
    """The JSON object that the command prints."""

    def run(*arguments: str | Path) -> Content:
        assert run_tool("score", *arguments, "--json") == cli.DONE
        printed: Content = json.loads(capsys.readouterr().out)
        return printed

    return run


@pytest.fixture
def mistake(run_tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """The message for a truth and results, by default of boxes."""

    def run(truth: Any, results: Any, kind: str = "boxes") -> str:
        assert run_tool("score", kind, *write(tmp_path, truth, results)) == cli.MISTAKE
        return capsys.readouterr().err

    return run


def write(folder: Path, truth: Any, results: Any) -> tuple[Path, Path]:
    paths = folder / "truth.json", folder / "results.json"
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return paths


def truth_of(pictures: Sequence[int | str], categories: Sequence[int | str]) -> Content:
    """One box of every category in every picture, of 10 x 10 pixels in 30 x 20."""
    annotations: list[Content] = [
        {"image_id": picture, "category_id": category, "bbox": [5, 6, 10, 10], "area": 100, "iscrowd": 0}
        for picture in pictures
        for category in categories
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
        annotation["segmentation"] = [[5, 6, 15, 6, 15, 16, 5, 16]]
    return {
        "images": [{"id": picture, "height": 30, "width": 20} for picture in pictures],
        "categories": [{"id": category, "name": f"class {category}"} for category in categories],
        "annotations": annotations,
    }


def results_of(truth: Content) -> list[Content]:
    """All of it, found."""
    return [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for annotation in truth["annotations"]
    ]


@pytest.mark.parametrize(("kind", "name"), [("boxes", "bbox"), ("masks", "segm")])
def test_gives_the_published_numbers(shared_data: Path, answer: Callable[..., Content], kind: str, name: str) -> None:
    folder = shared_data / "eval_reference"
    truth, results = (folder / part.format(name) for part in FAKE)
    expected = json.loads((folder / "coco_fake100/expected.json").read_text())[name]
    found = answer(kind, truth, results, "--per-class")
    assert list(found)[:12] == KEYS
    assert {key: found[key] for key in KEYS} == pytest.approx({key: expected[key] for key in KEYS}, abs=1e-6)
    assert [found[key] for key in KEYS] == pytest.approx(PUBLISHED[kind], abs=5.1e-4)
    columns = found["per_class"]
    by_id = dict(zip(map(str, columns["category_ids"]), columns["AP"], strict=True))
    assert {key: by_id[key] for key in expected["per_category_AP"]} == pytest.approx(
        expected["per_category_AP"], abs=1e-6
    )
    assert (found["images"], found["detections"]) == (expected["images"], expected["detections"])


@pytest.mark.parametrize(("kind", "name"), [("boxes", "bbox"), ("masks", "segm")])
def test_gives_pycocotools_numbers_on_coco128(
    shared_data: Path, answer: Callable[..., Content], kind: str, name: str
) -> None:
    short = "box" if kind == "boxes" else "mask"
    folder = shared_data / "eval_reference/coco128_train"
    expected = json.loads((folder / "expected.json").read_text())[name]
    truth = shared_data / f"coco128_train/annotations/instances_{short}.json"
    found = answer(kind, truth, folder / f"{short}_dets.json")
    assert {key: found[key] for key in KEYS} == pytest.approx({key: expected[key] for key in KEYS}, abs=1e-6)


def test_masks_with_boxes_give_what_pycocotools_makes_of_the_same_file(
    shared_data: Path, answer: Callable[..., Content], tmp_path: Path
) -> None:
    """The boxes are small, so that sizes told by them differ from those told by masks."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = shared_data / "coco128_train/annotations/instances_mask.json"
    results = json.loads((shared_data / "eval_reference/coco128_train/mask_dets.json").read_text())
    plain = answer("masks", *write(tmp_path, truth.read_text(), results))
    for index, result in enumerate(results):
        result["bbox"] = [5, 5, 10 + index % 150, 40]
    boxed = answer("masks", *write(tmp_path, truth.read_text(), results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert [boxed[key] for key in KEYS] == pytest.approx(evaluation.stats.tolist(), abs=1e-12)
    assert boxed["AP"] == plain["AP"]
    assert boxed["APl"] != plain["APl"]


@pytest.mark.parametrize("ids", [([0, 1], [0, 1]), ([397133, 12, 5], [90, 1]), (["b", "a"], ["x", "y"])])
def test_ids_pass_through(
    answer: Callable[..., Content], tmp_path: Path, ids: tuple[list[int | str], list[int | str]]
) -> None:
    truth = truth_of(*ids)
    found = answer("boxes", *write(tmp_path, truth, results_of(truth)[:-1]), "--per-class")
    assert (
        found["per_class"]["category_ids"] == sorted(ids[1], key=str) if isinstance(ids[1][0], str) else sorted(ids[1])
    )
    assert found["per_class"]["classes"] == [f"class {number}" for number in found["per_class"]["category_ids"]]
    missed = found["per_class"]["category_ids"].index(ids[1][-1])
    assert found["per_class"]["AR"][missed] == pytest.approx(1 - 1 / len(ids[0]))
    assert found["per_class"]["AP"][1 - missed] == pytest.approx(1)
    assert (found["APl"], found["ARl"]) == (-1, -1)


def test_masks_may_be_polygons_and_run_lengths_of_both_kinds(answer: Callable[..., Content], tmp_path: Path) -> None:
    from pycocotools import mask

    truth = truth_of([1, 2, 3], [1])
    encoded = mask.frPyObjects(truth["annotations"][0]["segmentation"], 30, 20)[0]
    compressed = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    runs, pixels = [], mask.decode(encoded).T.reshape(-1).tolist()
    value = 0
    while pixels:
        run = next((index for index, pixel in enumerate(pixels) if pixel != value), len(pixels))
        runs.append(run)
        pixels, value = pixels[run:], 1 - value
    forms = [truth["annotations"][0]["segmentation"], compressed, {"size": [30, 20], "counts": runs}]
    results = results_of(truth)
    for result, form in zip(results, forms, strict=True):
        del result["bbox"]
        result["segmentation"] = form
    assert answer("masks", *write(tmp_path, truth, results))["AP"] == pytest.approx(1)
    assert answer("boxes", *write(tmp_path, truth, results))["AP"] == pytest.approx(1)  # the boxes around them


def test_sizes_of_masks_are_told_by_boxes_where_there_are_some(
    run_tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As pycocotools does; other evaluations take the boxes out first, so the user is told."""
    truth = truth_of([1], [1])
    results = [result | {"segmentation": truth["annotations"][0]["segmentation"]} for result in results_of(truth)]
    assert run_tool("score", "masks", *write(tmp_path, truth, results)) == cli.DONE
    assert "sizes are told by it and not by the mask" in capsys.readouterr().err


def test_nothing_found_is_a_result(answer: Callable[..., Content], tmp_path: Path) -> None:
    found = answer("boxes", *write(tmp_path, truth_of([1], [1]), []))
    assert (found["AP"], found["AR100"], found["detections"]) == (0, 0, 0)


def test_a_table_of_classes_is_printed(run_tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = truth_of([1], [1, 2])
    truth["annotations"].pop()
    assert run_tool("score", "boxes", *write(tmp_path, truth, results_of(truth)), "--per-class") == cli.DONE
    shown = capsys.readouterr().out
    assert "class 1 │ 100.00%" in shown
    assert "1 absent classes are not shown" in shown
    assert "AP 1.0000" in shown
    assert "APl -" in shown


def test_plots_are_pictures(run_tool: Tool, tmp_path: Path) -> None:
    truth = truth_of([1, 2], list(range(30)))
    paths, folder = write(tmp_path, truth, results_of(truth)[:-7]), tmp_path / "new" / "plots"
    assert run_tool("score", "boxes", *paths, "--plots", folder) == cli.DONE
    names = sorted(path.name for path in folder.iterdir())
    sheets = ["precision_recall.png", "precision_recall_by_class_01.png", "precision_recall_by_class_02.png"]
    assert names == ["confusion.png", *sheets]
    for name in names:
        with Image.open(folder / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 10


def test_predictions_that_are_none_are_named(mistake: Callable[..., str], tmp_path: Path, run_tool: Tool) -> None:
    truth = truth_of([1], [1])
    good = results_of(truth)[0]
    assert "is no list of results, but object" in mistake(truth, {"results": []})
    assert "is no JSON" in mistake(truth, "[{")
    assert "number 0 of the results is no object, but number" in mistake(truth, [3])
    assert "2 results have no 'score': 0, 1" in mistake(
        truth, [{**good, "score": 1}, good][:0] + [without(good, "score")] * 2
    )
    assert "1 results have no 'bbox': 1 (counted from 0)" in mistake(truth, [good, without(good, "bbox")])
    assert "2 results are of image_ids" in mistake(truth, [good, {**good, "image_id": 7}, {**good, "image_id": "1"}])
    message = mistake(truth, [{**good, "category_id": number} for number in range(9)])
    assert "8 results are of category_ids" in message
    assert "0, 2, 3, 4, 5, ..." in message
    assert "there they are numbers" in message
    for score, shown in ((float("nan"), "nan"), (None, "None"), ("0.5", "'0.5'"), (True, "True")):
        assert f"score of 1 results is no finite number: result 1 has {shown}" in mistake(
            truth, [good, {**good, "score": score}]
        )
    assert "bbox of result 0 must be [x, y, width, height], given [1, 2, 3]" in mistake(
        truth, [{**good, "bbox": [1, 2, 3]}]
    )
    assert "bbox of result 0 must be" in mistake(truth, [{**good, "bbox": []}])
    assert "bbox of 1 results is no finite number: result 1 has inf" in mistake(
        truth, [good, {**good, "bbox": [1, 2, 3, float("inf")]}]
    )


def without(record: Content, key: str) -> Content:
    return {name: value for name, value in record.items() if name != key}


def test_files_that_are_not_there_are_named(run_tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, results = write(tmp_path, truth_of([1], [1]), [])
    assert run_tool("score", "boxes", tmp_path / "absent.json", results) == cli.MISTAKE
    assert "absent.json: no such file" in capsys.readouterr().err
    assert run_tool("score", "boxes", truth, tmp_path) == cli.MISTAKE
    assert str(tmp_path) in capsys.readouterr().err


def test_masks_that_cant_be_used_are_named(mistake: Callable[..., str]) -> None:
    truth = truth_of([7], [1])
    record = without(results_of(truth)[0], "bbox")
    cases = {
        "its size is [20, 30], and the image's [30, 20] (H, W)": {"size": [20, 30], "counts": "04"},
        "its runs are damaged, or are not 600 pixels together": {"size": [30, 20], "counts": "04"},
        "its runs must be of 0 pixels or more, together 600": {"size": [30, 20], "counts": [3, 4]},
        "a polygon must be a list of x, y, x, y, ...": [[1, 2, 3, 4]],
        "it has no polygon": [],
        "must be polygons, or run lengths": "abc",
        "counts must be a string": {"size": [30, 20], "counts": 5},
        "size must be [height, width], given 600": {"size": 600, "counts": "04"},
    }
    for text, segmentation in cases.items():
        message = mistake(truth, [{**record, "segmentation": segmentation}], "masks")
        assert f"segmentation of result 0 of image 7: {text}" in message
    assert "1 results have no 'segmentation'" in mistake(truth, [record], "masks")


def test_a_truth_that_cant_be_used_is_named(mistake: Callable[..., str]) -> None:
    truth = truth_of([1], [1])
    assert "is no ground truth: it must be an object with lists of images" in mistake([], [])
    assert "1 ids of images occur more than once: 1" in mistake({**truth, "images": truth["images"] * 2}, [])
    assert "1 categories have no 'id': 0" in mistake({**truth, "categories": [{}]}, [])
    mixed = {**truth, "categories": [{"id": 1}, {"id": "2"}]}
    assert "ids of categories must be all whole numbers or all strings, given 1, 2" in mistake(mixed, [])
    lacking = {**truth, "annotations": [without(truth["annotations"][0], "bbox")]}
    assert "1 annotations have no 'bbox': 0" in mistake(lacking, [])


def test_doubtful_annotations_are_told_of(run_tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = truth_of([1, 2], [1])
    truth["annotations"][0]["id"] = 0
    truth["images"].pop()
    assert run_tool("score", "boxes", *write(tmp_path, truth, results_of(truth)[:1])) == cli.DONE
    output = capsys.readouterr()
    assert "warning: 1 annotations are left out" in output.err
    assert "warning: an annotation has id 0" in output.err
    assert "AP 1.0000" in output.out

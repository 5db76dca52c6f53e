"""score.py panoptic: the numbers of panopticapi, and one clear message for each mistake."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdense import cli

Tool = Callable[..., int]
Content = dict[str, Any]
Inputs = dict[str, Any]


def test_gives_panopticapis_numbers(shared_data: Path, run_tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    reference, truth = shared_data / "eval_reference/coco128_train", shared_data / "coco128_train"
    files = (truth / "annotations/panoptic.json", truth / "panoptic")
    results = (reference / "panoptic_pred.json", reference / "panoptic_pred")
    assert run_tool("score", "panoptic", *files, *results, "--json", "--per-class") == cli.DONE
    found = json.loads(capsys.readouterr().out)
    expected = json.loads((reference / "expected.json").read_text())["panoptic"]
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        assert [found[name + suffix] for name in ("PQ", "SQ", "RQ")] == pytest.approx(
            [expected[group][name] for name in ("pq", "sq", "rq")], abs=1e-6
        )
    columns = found["per_class"]
    for index, number in enumerate(columns["category_ids"]):
        values = [columns[name][index] or 0 for name in ("PQ", "SQ", "RQ")]  # theirs says 0 of absent classes
        stored = expected["per_class"][str(number)]
        assert values == pytest.approx([stored["pq"], stored["sq"], stored["rq"]], abs=1e-6)
    assert sum(value is not None for value in columns["PQ"]) == expected["All"]["n"]


def test_the_authors_example_against_itself_is_perfect(
    shared_data: Path, run_tool: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared_data / "panoptic_sample"
    pair = (folder / "panoptic_examples.json", folder / "panoptic_examples")
    assert run_tool("score", "panoptic", *pair, *pair, "--per-class") == cli.DONE
    shown = capsys.readouterr().out
    assert "PQ 1.0000  SQ 1.0000  RQ 1.0000" in shown
    assert "person" in shown


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """A picture of one thing, in both; see `message`."""
    for side in ("truth", "predictions"):
        (tmp_path / side).mkdir()
        Image.fromarray(np.full((2, 3, 3), (5, 1, 0), np.uint8)).save(tmp_path / side / "1.png")
    segments = [{"id": 261, "category_id": 4, "iscrowd": 0, "area": 6}]
    annotations = [{"image_id": 1, "file_name": "1.png", "segments_info": segments}]
    categories = [{"id": 4, "name": "cat", "isthing": 1}]
    return {"folder": tmp_path, "annotations": annotations, "categories": categories}


def message(run_tool: Tool, capsys: pytest.CaptureFixture[str], inputs: Inputs, predicted: Any) -> str:
    folder = inputs["folder"]
    truth = {"categories": inputs["categories"], "annotations": inputs["annotations"]}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "predictions.json").write_text(json.dumps(predicted))
    places = [folder / name for name in ("truth.json", "truth", "predictions.json", "predictions")]
    run_tool("score", "panoptic", *places)
    output = capsys.readouterr()
    return output.out + output.err


def test_mistakes_are_named(run_tool: Tool, capsys: pytest.CaptureFixture[str], inputs: Inputs) -> None:
    (good,) = inputs["annotations"]

    def told(*records: Content) -> str:
        return message(run_tool, capsys, inputs, {"annotations": list(records)})

    def with_segments(*segments: Content) -> Content:
        return {**good, "segments_info": list(segments)}

    assert "PQ 1.0000" in told(good)
    assert "is no panoptic JSON" in message(run_tool, capsys, inputs, [])
    assert "has no prediction for 1 images: 1" in told()
    assert "has predictions without truth for 1 images: 2" in told(good, {**good, "image_id": 2, "file_name": "2.png"})
    assert "1 image_ids occur more than once: 1" in told(good, {**good, "file_name": "2.png"})
    assert "1 file_names occur more than once: 1.png" in told(good, {**good, "image_id": 2})
    assert "1 annotations have no 'segments_info': 0" in told({"image_id": 1, "file_name": "1.png"})
    assert "its JSON lacks the segments 261" in told(with_segments())
    assert "its map lacks the segments 7" in told(with_segments(*good["segments_info"], {"id": 7, "category_id": 4}))
    assert "image 1 has the unknown category 5" in told(with_segments({"id": 261, "category_id": 5}))
    assert "1 segments have no 'category_id'" in told(with_segments({"id": 261}))
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(inputs["folder"] / "predictions" / "1.png")
    assert "is (3, 3)" in told(good)
    (inputs["folder"] / "predictions" / "1.png").unlink()
    assert "1.png" in told(good)

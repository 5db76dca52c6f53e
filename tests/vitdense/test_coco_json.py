"""COCO's results from detections and back: nothing lost, ids as they are."""

import json
from pathlib import Path

import pytest
import torch

from vitdense.coco_json import from_results, to_results, write_results
from vitdense.contracts import Detections
from vitdense.errors import DataError

GAPPY = (3, 7, 90)


def detections(number: int = 5, *, masks: bool = True) -> Detections:
    generator = torch.Generator().manual_seed(number)
    corners = 300 * torch.rand(number, 2, generator=generator)
    boxes = torch.cat([corners, corners + 80 * torch.rand(number, 2, generator=generator)], dim=1)
    scores = torch.rand(number, generator=generator).sort(descending=True).values
    labels = torch.randint(0, 3, (number,), generator=generator)
    shapes = torch.rand(number, 11, 13, generator=generator) < 0.5
    return Detections(boxes, scores, labels, shapes if masks else None)


@pytest.mark.parametrize("category_ids", [(), (0, 1, 2), (1, 2, 3), GAPPY])
@pytest.mark.parametrize("image_id", [0, 397133, "a/b"])
def test_detections_come_back_from_a_file_as_they_were(
    tmp_path: Path, category_ids: tuple[int, ...], image_id: int | str
) -> None:
    found = detections()
    write_results(to_results(found, image_id, category_ids), tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert {result["image_id"] for result in results} == {image_id}
    expected = [category_ids[label] if category_ids else label for label in found.labels.tolist()]
    assert [result["category_id"] for result in results] == expected
    (back,) = from_results(results, category_ids).values()
    assert list(from_results(results, category_ids)) == [image_id]
    assert (back.boxes.float() == found.boxes).all()
    assert (back.scores.float() == found.scores).all()
    assert (back.labels == found.labels).all()
    assert back.masks is not None
    assert found.masks is not None
    assert (back.masks == found.masks).all()


def test_boxes_are_corner_and_extent_in_float64() -> None:
    found = Detections(torch.tensor([[1.5, 2, 4, 2.25]]), torch.tensor([0.5]), torch.tensor([1]))
    assert to_results(found, 8, GAPPY) == [
        {"image_id": 8, "category_id": 7, "bbox": [1.5, 2.0, 2.5, 0.25], "score": 0.5}
    ]


def test_what_the_detections_say_of_categories_is_written() -> None:
    found = detections(masks=False).named(GAPPY)
    assert to_results(found, 1) == to_results(detections(masks=False), 1, GAPPY)


def test_pictures_are_told_apart_and_things_ordered_by_score() -> None:
    results = [*to_results(detections(4), 2), *to_results(detections(3), "x")]
    back = from_results(results[::-1])
    assert {number: len(found) for number, found in back.items()} == {"x": 3, 2: 4}
    assert (back[2].scores.float() == detections(4).scores).all()
    assert from_results([]) == {}
    assert to_results(detections(0), 1) == []


def test_an_unknown_category_is_named() -> None:
    with pytest.raises(DataError, match="a result is of category 2; allowed are 3, 7, 90"):
        from_results(to_results(detections(), 1, (2, 2, 2)), GAPPY)

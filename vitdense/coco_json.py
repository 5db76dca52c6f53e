"""Things found, as COCO's list of results (https://cocodataset.org/#format-results) and back."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitdense.contracts import Detections
from vitdense.errors import DataError
from vitdense.metrics.coco.masks import decode, encode
from vitdense.metrics.coco.things import Rle

Id = int | str
Result = dict[str, Any]


def to_results(found: Detections, image_id: Id, category_ids: Sequence[int] = ()) -> list[Result]:
    """One result for each thing of a picture: its bbox is [x, y, width, height] in float64, its segmentation run
    lengths where there are masks.

    category_ids: the number of each class in the truth; left out, what the detections say, or else the class indices.
    Ids are written as they are given.
    """
    named = found.named(category_ids) if category_ids or found.category_ids is None else found
    assert named.category_ids is not None
    corners = named.boxes.detach().cpu().double().reshape(-1, 4)
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    scores = named.scores.detach().cpu().double().tolist()
    rows = zip(named.category_ids.tolist(), boxes, scores, strict=True)
    results = [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score} for category, box, score in rows
    ]
    if named.masks is not None:
        masks = encode(named.masks.cpu().numpy().astype(np.bool_, copy=False))
        for result, mask in zip(results, masks, strict=True):
            result["segmentation"] = {"size": [int(side) for side in mask["size"]], "counts": mask["counts"].decode()}
    return results


def from_results(results: Iterable[Result], category_ids: Sequence[int] = ()) -> dict[Id, Detections]:
    """What was found in each picture that has a result, surest first: `to_results` backwards, in float64.

    category_ids: as there; DataError names a category that is not among them.
    """
    labels = {number: index for index, number in enumerate(category_ids)}
    by_picture: dict[Id, list[Result]] = {}
    for result in results:
        if category_ids and result["category_id"] not in labels:
            allowed = ", ".join(map(str, category_ids))
            raise DataError(f"a result is of category {result['category_id']!r}; allowed are {allowed}")
        by_picture.setdefault(result["image_id"], []).append(result)
    return {number: _detections(records, labels) for number, records in by_picture.items()}


def write_results(results: Sequence[Result], path: str | Path) -> None:
    """A JSON file that evaluation servers and `tools/score.py boxes` read.

    Those that score masks tell sizes by the bbox where the results have one, unless they take it out first.
    """
    Path(path).write_text(json.dumps(results), encoding="utf-8")


def _detections(records: list[Result], labels: dict[int, int]) -> Detections:
    records = sorted(records, key=lambda record: -record["score"])
    boxes = torch.tensor([record["bbox"] for record in records], dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]
    numbers = [record["category_id"] for record in records]
    masks = None
    if all("segmentation" in record for record in records):
        stored = [record["segmentation"] for record in records]
        masks = torch.from_numpy(decode([Rle(size=each["size"], counts=each["counts"].encode()) for each in stored]))
    return Detections(
        boxes,
        torch.tensor([record["score"] for record in records], dtype=torch.float64),
        torch.tensor([labels[number] if labels else number for number in numbers]),
        masks,
        torch.tensor(numbers),
    )

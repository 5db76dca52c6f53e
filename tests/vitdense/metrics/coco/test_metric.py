"""The metric `coco`: the numbers of pycocotools from tensors, under any split into batches, and clear messages."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vitdense.contracts import METRICS, Batch, Detections, Samples, Target
from vitdense.errors import UserError
from vitdense.metrics.coco import Coco
from vitdense.metrics.coco.masks import decode, encode
from vitdense.metrics.coco.records import by_masks

CLASSES = ("cat", "dog", "cow")
SIDE = 40


def picture(seed: int) -> tuple[Detections, Target]:
    """Things of a picture and what was found of them, with masks that fill their boxes."""
    generator = torch.Generator().manual_seed(seed)
    number = seed % 4
    corners = torch.randint(0, SIDE // 2, (number, 2), generator=generator).double()
    boxes = torch.cat([corners, corners + torch.randint(4, SIDE // 2, (number, 2), generator=generator)], dim=1)
    labels = torch.randint(0, 3, (number,), generator=generator)
    target = Target(boxes=boxes + 0.1, labels=labels, masks=filled(boxes), crowd=torch.arange(number) == 2)
    target["areas"] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    near = boxes.repeat(3, 1) + 2 * torch.randn(3 * number, 4, generator=generator)
    scores = torch.randint(1, 5, (3 * number,), generator=generator) / 4
    found = Detections(near.float(), scores, labels.repeat(3), filled(near))
    return found[scores.argsort(descending=True, stable=True)], target


def filled(boxes: Tensor) -> Tensor:
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().int().clamp(0, SIDE).tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return masks


def counted(seeds: list[int], batch_size: int = 2, **options: Any) -> Coco:
    metric = METRICS.create("coco", options).build(cast(Samples, SimpleNamespace(classes=CLASSES)))
    assert isinstance(metric, Coco)
    for start in range(0, len(seeds), batch_size):
        chosen = seeds[start : start + batch_size]
        pairs = [picture(seed) for seed in chosen]
        batch = Batch(ids=[str(seed) for seed in chosen], targets=[target for _, target in pairs])
        metric.update([found for found, _ in pairs], batch)
    return metric


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_gives_the_numbers_of_pycocotools(kind: str) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    metric = counted(list(range(12)), iou_type="both")
    truth, found, pictures = metric.records.things()
    assert truth.masks is not None
    compared = by_masks(found) if kind == "segm" else found
    sides = []
    for things, scores, crowd in ((truth, None, truth.crowd), (compared, found.scores, np.zeros(len(found)))):
        assert things.masks is not None
        annotations = [
            {
                "id": index + 1,
                "image_id": int(things.pictures[index]),
                "category_id": int(things.labels[index]),
                "bbox": things.boxes[index].tolist(),
                "area": float(things.areas[index]),
                "iscrowd": int(crowd[index]),
                "segmentation": things.masks[index],
                **({} if scores is None else {"score": float(scores[index])}),
            }
            for index in range(len(things))
        ]
        side = COCO()
        side.dataset = {
            "images": [{"id": index, "height": SIDE, "width": SIDE} for index in range(pictures)],
            "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES)],
            "annotations": annotations,
        }
        side.createIndex()
        sides.append(side)
    evaluation = COCOeval(*sides, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    prefix = "mask_" if kind == "segm" else ""
    ours = {name.removeprefix(prefix): value for name, value in metric.compute().items() if name.startswith(prefix)}
    assert [ours[name] for name in list(ours)[:12]] == pytest.approx(evaluation.stats.tolist(), abs=1e-12)
    assert 0 < evaluation.stats[0] < 1


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_any_split_and_order_gives_the_same(batch_size: int) -> None:
    whole = counted(list(range(12)), iou_type="both").compute()
    assert list(whole)[:3] == ["AP", "AP50", "AP75"]
    assert list(whole)[12] == "mask_AP"
    assert len(whole) == 24
    assert counted(list(range(11, -1, -1)), batch_size, iou_type="both").compute() == whole


def test_a_picture_that_comes_twice_counts_once() -> None:
    assert counted([1, 2, 3, 5, 2, 1]).compute() == counted([1, 2, 3, 5]).compute()


def test_pictures_without_ids_all_count() -> None:
    metric = counted([])
    for _ in range(2):
        found, target = picture(3)
        metric.update([found], Batch(targets=[target]))
    assert metric.records.things()[2] == 2


def test_records_of_two_processes_are_put_together() -> None:
    halves = [counted(seeds, iou_type="both") for seeds in ([0, 2, 4, 6], [1, 3, 5, 0])]
    sent: list[list[Tensor]] = []

    def note(rows: Tensor) -> Tensor:
        sent[-1].append(rows)
        return rows

    for half in halves:
        sent.append([])
        half.gather(note)
    both = iter([torch.cat(rows) for rows in zip(*sent, strict=True)])
    halves[0].gather(lambda rows: next(both))
    assert halves[0].compute() == counted([0, 1, 2, 3, 4, 5, 6], iou_type="both").compute()


def test_perfect_boxes_are_found_in_full_precision() -> None:
    """Boxes far out differ from their float32 by more than half a pixel."""
    boxes = torch.tensor([[2.0**24, 2.0**24, 2.0**24 + 3, 2.0**24 + 3]], dtype=torch.float64)
    metric = counted([])
    found = Detections(boxes, torch.ones(1), torch.zeros(1, dtype=torch.int64))
    metric.update([found], Batch(targets=[Target(boxes=boxes, labels=torch.zeros(1, dtype=torch.int64))]))
    assert metric.compute()["AP"] == pytest.approx(1.0)


def test_columns_by_class_and_nothing_at_all() -> None:
    metric = counted(list(range(12)), iou_type="both")
    details = metric.details()
    assert not details.keys() & metric.compute().keys()  # tools print them as one object
    assert list(details) == ["classes", *(f"class_{p}{n}" for p in ("", "mask_") for n in ("AP", "AP50", "AP75", "AR"))]
    assert {len(column) for column in details.values()} == {3}
    assert counted([]).compute() == counted([4, 8]).compute() == dict.fromkeys(counted([]).compute(), -1.0)


def test_masks_go_through_run_lengths() -> None:
    masks = filled(picture(3)[0].boxes).numpy()
    assert (decode(encode(masks)) == masks).all()
    assert encode(masks[:0]) == []


def test_several_hands_the_gathering_on() -> None:
    config = METRICS.create("several", {"metrics": [{"name": "coco"}, {"name": "coco", "max_detections": [1]}]})
    metric = config.build(cast(Samples, SimpleNamespace(classes=CLASSES)))
    found, target = picture(3)
    metric.update([found], Batch(ids=["a"], targets=[target]))
    rows: list[int] = []
    metric.gather(lambda tensor: rows.append(len(tensor)) or tensor)  # type: ignore[func-returns-value]
    assert len(rows) == 2 * 10


def test_mistakes_are_named() -> None:
    found, target = picture(3)
    metric = counted([])
    with pytest.raises(UserError, match="needs a data set of things"):
        metric.update([found], Batch(ids=["a"]))
    with pytest.raises(UserError, match="needs a head that finds things"):
        metric.update([torch.zeros(4, 4)], Batch(ids=["a"], targets=[target]))
    with pytest.raises(UserError, match=r"a: the prediction has labels 7\.\.7; allowed are 0\.\.2"):
        metric.update([replace(found, labels=found.labels * 0 + 7)], Batch(ids=["a"], targets=[target]))
    masks = counted([], iou_type="segm")
    with pytest.raises(UserError, match=r"a: .* needs a head that gives masks"):
        masks.update([replace(found, masks=None)], Batch(ids=["a"], targets=[target]))
    with pytest.raises(UserError, match=r"a: the predicted masks are \(40, 39\) and the true ones \(40, 40\)"):
        masks.update([replace(found, masks=found.masks[..., 1:])], Batch(ids=["a"], targets=[target]))  # type: ignore[index]
    with pytest.raises(ValidationError, match="must be 1 or more and ascend"):
        METRICS.create("coco", {"max_detections": [10, 1]})
    with pytest.raises(UserError, match="needs a data set with classes"):
        METRICS.create("coco", {}).build(cast(Samples, SimpleNamespace(classes=())))

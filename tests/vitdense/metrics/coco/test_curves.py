"""COCO's evaluation against pycocotools: a thousand random sets of boxes, and masks."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from vitdense.metrics.coco import matching, pairs
from vitdense.metrics.coco.curves import Curves, evaluate
from vitdense.metrics.coco.things import FoundThings, TrueThings

Records = list[dict[str, Any]]


def pycocotools_evaluation(truth: dict[str, Any], found: Records, iou_type: str = "bbox") -> Any:
    """COCOeval, evaluated, accumulated and summarised, of ground truth and results as in files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        if found:
            results = coco.loadRes(found)
        else:  # loadRes refuses an empty list
            results = COCO()
            results.dataset = {**truth, "annotations": []}
            results.createIndex()
        evaluation = COCOeval(coco, results, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def random_truth(rng: np.random.Generator, pictures: int, classes: int) -> dict[str, Any]:
    """Boxes on a coarse grid, so that overlaps are equal now and then; crowds; areas at the borders of the sizes."""
    annotations: Records = []
    scale = rng.choice([1.0, 8.0, 32.0, 96.0, 3e4])
    for picture in range(pictures):
        for _ in range(rng.integers(0, 7)):
            box = [*(rng.integers(0, 4, 2) * scale / 2), *(rng.integers(1, 5, 2) * scale / 2)]
            if rng.random() < 0.3:
                box = [float(value) for value in np.array(box) * rng.uniform(0.5, 1.5, 4)]
            area = rng.choice([box[2] * box[3], 1024.0, 9216.0, 9216.0 - 1e-9, 0.0, 1e10])
            category = int(rng.integers(0, classes))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": picture,
                    "category_id": category,
                    "bbox": [float(value) for value in box],
                    "area": float(area if rng.random() < 0.4 else box[2] * box[3]),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    return {
        "images": [{"id": picture, "height": 640, "width": 640} for picture in range(pictures)],
        "categories": [{"id": category, "name": str(category)} for category in range(classes)],
        "annotations": annotations,
    }


def random_results(rng: np.random.Generator, truth: dict[str, Any]) -> Records:
    """Copies of true boxes, moved or not, in their class or another; strangers; scores of which many are equal."""
    results: Records = []
    classes, pictures = len(truth["categories"]), len(truth["images"])
    for annotation in truth["annotations"]:
        for _ in range(rng.integers(0, 4)):
            box = np.array(annotation["bbox"])
            if rng.random() < 0.6:
                box[:2] += rng.normal(0, 0.15, 2) * box[2:]
                box[2:] *= rng.uniform(0.7, 1.4, 2)
            same = rng.random() < 0.8
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if same else int(rng.integers(0, classes)),
                    "bbox": box.tolist(),
                    "score": float(rng.integers(0, 4) / 4 if rng.random() < 0.5 else rng.random()),
                }
            )
    for _ in range(rng.integers(0, 25)):
        results.append(
            {
                "image_id": int(rng.integers(0, pictures)),
                "category_id": int(rng.integers(0, classes)),
                "bbox": (rng.random(4) * rng.choice([4.0, 60.0, 300.0])).tolist(),
                "score": float(rng.random()),
            }
        )
    return [results[index] for index in rng.permutation(len(results))]


def true_things(truth: dict[str, Any]) -> TrueThings:
    """Records whose ids are indices, as columns."""
    records = truth["annotations"]
    return TrueThings(
        pictures=np.array([record["image_id"] for record in records], np.int64),
        labels=np.array([record["category_id"] for record in records], np.int64),
        boxes=np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4),
        areas=np.array([record["area"] for record in records], np.float64),
        crowd=np.array([record["iscrowd"] for record in records], np.bool_),
        masks=[record["segmentation"] for record in records] if records and "segmentation" in records[0] else None,
    )


def found_things(results: Records) -> FoundThings:
    """Results whose ids are indices, as columns."""
    from pycocotools import mask

    masks = [record["segmentation"] for record in results] if results and "segmentation" in results[0] else None
    boxes = np.array([record.get("bbox", [0, 0, 0, 0]) for record in results], np.float64).reshape(-1, 4)
    return FoundThings(
        pictures=np.array([record["image_id"] for record in results], np.int64),
        labels=np.array([record["category_id"] for record in results], np.int64),
        boxes=boxes,
        scores=np.array([record["score"] for record in results], np.float64),
        areas=boxes[:, 2] * boxes[:, 3] if masks is None else np.array(mask.area(masks), np.float64),
        masks=masks,
    )


def evaluated(truth: dict[str, Any], results: Records, **options: Any) -> Curves:
    pictures, classes = len(truth["images"]), len(truth["categories"])
    return evaluate(true_things(truth), found_things(results), num_pictures=pictures, num_classes=classes, **options)


def check(truth: dict[str, Any], results: Records, iou_type: str = "bbox") -> Any:
    """Both evaluations agree in every number; what pycocotools gave."""
    curves = evaluated(truth, results)
    theirs = pycocotools_evaluation(truth, [dict(record) for record in results], iou_type)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_allclose(getattr(curves, name), theirs.eval[name], rtol=0, atol=1e-12)
    np.testing.assert_allclose(list(curves.stats().values()), theirs.stats, rtol=0, atol=1e-12)
    return theirs


@pytest.mark.parametrize("hundred", range(10))
def test_a_hundred_random_sets_of_boxes_are_evaluated_as_pycocotools_does(hundred: int) -> None:
    matched = 0
    for seed in range(100 * hundred, 100 * hundred + 100):
        rng = np.random.default_rng(seed)
        truth = random_truth(rng, pictures=int(rng.integers(1, 4)), classes=int(rng.integers(1, 4)))
        matched += check(truth, random_results(rng, truth)).stats[0] > 0
    assert matched > 70  # most of them have something to get wrong


@pytest.mark.parametrize("seed", range(12))
def test_masks_are_evaluated_as_pycocotools_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, pictures=3, classes=2)
    results = random_results(rng, truth)
    for record in (*truth["annotations"], *results):
        record["segmentation"] = random_mask(rng, record["bbox"])
    for record in results:
        del record["bbox"]
    check(truth, results, "segm")


def random_mask(rng: np.random.Generator, box: list[float]) -> dict[str, Any]:
    """A box shrunk into 48 x 48 pixels, with holes; now and then it is empty."""
    from pycocotools import mask

    pixels = np.zeros((48, 48), np.uint8)
    left, top, width, height = (int(value) % 40 for value in box)
    pixels[top : top + height + 4, left : left + width + 4] = rng.random() < 0.95
    pixels &= rng.random((48, 48)) < 0.9
    encoded: dict[str, Any] = mask.encode(np.asfortranarray(pixels))
    return encoded


def test_more_than_a_hundred_things_of_a_class_and_picture_are_cut_off() -> None:
    rng = np.random.default_rng(0)
    truth = random_truth(rng, pictures=2, classes=1)
    results = [record for _ in range(12) for record in random_results(rng, truth)]
    assert len(results) > 200
    check(truth, results)


@pytest.mark.parametrize("portion", [1, 7, 30])
def test_pairs_may_be_compared_and_matched_in_portions(monkeypatch: pytest.MonkeyPatch, portion: int) -> None:
    monkeypatch.setattr(matching, "PORTION", portion)
    monkeypatch.setattr(pairs, "BLOCK", portion)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        truth = random_truth(rng, pictures=3, classes=2)
        check(truth, random_results(rng, truth))


def test_pictures_and_classes_without_anything() -> None:
    rng = np.random.default_rng(1)
    truth = random_truth(rng, pictures=4, classes=6)
    truth["annotations"] = [each for each in truth["annotations"] if each["category_id"] in (1, 4)]
    results = [each for each in random_results(rng, truth) if each["image_id"] != 2]
    check(truth, results)
    check(truth, [])
    truth["annotations"] = []
    assert (check(truth, results).stats == -1).all()


def test_by_class_tells_absent_ones() -> None:
    rng = np.random.default_rng(3)
    truth = random_truth(rng, pictures=6, classes=3)
    truth["annotations"] = [each for each in truth["annotations"] if each["category_id"] != 1]
    results = random_results(rng, truth)
    columns = evaluated(truth, results).by_class()
    theirs = pycocotools_evaluation(truth, results).eval
    assert np.isnan([column[1] for column in columns.values()]).all()
    for label in (0, 2):
        assert columns["AP"][label] == pytest.approx(theirs["precision"][:, :, label, 0, 2].mean(), abs=1e-12)
        assert columns["AP75"][label] == pytest.approx(theirs["precision"][5, :, label, 0, 2].mean(), abs=1e-12)
        assert columns["AR"][label] == pytest.approx(theirs["recall"][:, label, 0, 2].mean(), abs=1e-12)


def test_other_numbers_of_detections() -> None:
    rng = np.random.default_rng(4)
    truth = random_truth(rng, pictures=3, classes=2)
    stats = evaluated(truth, random_results(rng, truth), max_detections=(2, 300)).stats()
    assert [name for name in stats if name.startswith("AR")] == ["AR2", "AR300", "ARs", "ARm", "ARl"]

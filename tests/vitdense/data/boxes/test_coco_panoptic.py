"""COCO's panoptic form: what JSON and maps say becomes targets, and what they say wrongly is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.contracts import DATA
from vitdense.data.boxes.coco_panoptic import PanopticSamples
from vitdense.errors import DataError

CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 90, "name": "sky", "isthing": 0},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pictures; of the first a sky, a person, a crowd of cats, and a corner of nothing."""
    (tmp_path / "annotations").mkdir()
    for split, sizes in (("train", [(20, 30), (16, 16)]), ("val", [(20, 30)])):
        maps, images = tmp_path / f"annotations/panoptic_{split}2017", tmp_path / f"{split}2017"
        maps.mkdir()
        images.mkdir()
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
        for number, (height, width) in enumerate(sizes, start=1):
            ids = np.zeros((height, width), np.int64)
            ids[: height // 2], ids[height // 2 :, : width // 2], ids[height // 2 :, width // 2 :] = 70_000, 5, 300
            ids[-2:, -2:] = 0
            colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
            Image.fromarray(colours).save(maps / f"{number}.png")
            Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(images / f"{number}.jpg")
            content["images"].append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
            top, left = height // 2, width // 2
            boxes = {70_000: [0, 0, width, top], 5: [0, top, left, height - top], 300: [left, top, left, height - top]}
            info = [
                {"id": each, "category_id": category, "bbox": boxes[each], "area": 1, "iscrowd": int(each == 300)}
                for each, category in ((70_000, 90), (5, 1), (300, 3))
            ]
            content["annotations"].append({"image_id": number, "file_name": f"{number}.png", "segments_info": info})
        (tmp_path / f"annotations/panoptic_{split}2017.json").write_text(json.dumps(content))
    return tmp_path


def build(root: Path, split: Any = "val", **options: Any) -> PanopticSamples:
    samples = DATA.create("coco_panoptic", {"root": str(root), **options}).build(split)
    assert isinstance(samples, PanopticSamples)
    return samples


def test_every_segment_is_a_target(root: Path) -> None:
    samples = build(root)
    assert samples.classes == ("person", "cat", "sky")
    assert (samples.category_ids, samples.things) == ((1, 3, 90), (True, True, False))
    assert samples.audit() == []
    sample = samples[0, 0]
    target = sample["target"]
    assert target["labels"].tolist() == [2, 0, 1]
    assert target["crowd"].tolist() == [False, False, True]
    assert target["masks"].sum((1, 2)).tolist() == [300, 150, 146]
    assert target["masks"].sum(0).max() == 1
    assert target["boxes"][1].tolist() == [0, 10, 15, 20]


def test_views_keep_segments_on_their_pixels_and_leave_out_crowds(root: Path) -> None:
    augment = {"kind": "none", "flip": True}
    samples = build(root, "train", augment=augment)
    seen = set()
    for epoch in range(6):
        target = samples[epoch, 0]["target"]
        assert target["labels"].tolist() == [2, 0]
        person = target["masks"][1]
        seen.add(bool(person[15, 0]))
        assert person.sum() == 150
        assert target["masks"][0, :10].all()
    assert seen == {True, False}


def change_map(root: Path) -> None:
    path = root / "annotations/panoptic_val2017/1.png"
    colours = np.array(Image.open(path))
    colours[0, 0] = (9, 0, 0)
    Image.fromarray(colours).save(path)


def lose_map(root: Path) -> None:
    (root / "annotations/panoptic_val2017/1.png").unlink()


def shrink_map(root: Path) -> None:
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(root / "annotations/panoptic_val2017/1.png")


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        for split in ("train", "val"):
            path = root / f"annotations/panoptic_{split}2017.json"
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))

    return apply


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (change_map, r"1\.png: the segments 9 are in no segments_info"),
    (lose_map, r"1\.png"),
    (shrink_map, r"1\.png is 5 x 4 pixels, .*1\.jpg 30 x 20"),
    (
        edit(lambda c: c["annotations"][0]["segments_info"][0].update(category_id=4)),
        "category_id = 4: no such category",
    ),
    (
        edit(lambda c: c["annotations"][0]["segments_info"][0].update(id=5)),
        "segments of image 1 or the image come twice",
    ),
    (
        edit(lambda c: c["annotations"][0]["segments_info"][0].update(id=7)),
        "the segments 70000 are in no segments_info",
    ),
    (edit(lambda c: c["annotations"][0].update(segments_info=4)), "segments_info = 4; expected a list"),
    (edit(lambda c: c["annotations"][0].update(image_id=44)), "no picture of 'images' has this id"),
    (edit(lambda c: c["categories"][0].update(isthing=None)), "categories 3: isthing = None; allowed: 0, 1"),
]


def faults_of(root: Path) -> str:
    try:
        return "; ".join(build(root).audit())
    except DataError as error:
        return str(error)


@pytest.mark.parametrize(("spoil", "message"), FAULTS)
def test_faults_are_named(root: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(root)
    assert re.search(message, faults_of(root))


def test_a_missing_layout_is_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no panoptic_val\*\.json; expected"):
        build(tmp_path)
    with pytest.raises(DataError, match=r"needs data\.root=ROOT"):
        DATA.create("coco_panoptic", {}).build("val")


def test_pictures_of_coco_share_out_their_pixels(shared_data: Path) -> None:
    options = {"val_annotations": "annotations/panoptic.json", "val_maps": "panoptic", "val_images": "images"}
    samples = build(shared_data / "coco128_train", **options, first=6)
    assert (len(samples), len(samples.classes), sum(samples.things)) == (6, 133, 80)
    assert samples.audit() == []
    for index in range(3):
        masks = samples[0, index]["target"]["masks"]
        assert torch.equal(masks.sum(0), masks.any(0).long())

"""`coco`: one order of classes whatever the ids are, crowds, outlines, layouts, and real files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitdense.contracts import DATA, Split
from vitdense.data.boxes.coco_json import read_categories
from vitdense.data.boxes.samples import BoxSamples
from vitdense.errors import DataError

Make = Callable[..., Path]
PLAIN = {"kind": "none"}


def build(root: Path, split: Split = "train", **options: object) -> BoxSamples:
    samples = DATA.create("coco", {"root": str(root), **options}).build(split)
    assert isinstance(samples, BoxSamples)
    return samples


def test_classes_stand_in_the_order_of_their_ids(make_coco: Make) -> None:
    samples = build(make_coco(), "val")
    assert samples.category_ids == (3, 7, 90)
    assert samples.classes == ("cat", "dog", "bird")
    assert samples[0, 0]["target"]["labels"].tolist() == [1, 0, 2]
    assert len(samples.palette) == 3


@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 2, 3), (5, 1000, 80)])
def test_ids_from_0_from_1_and_with_gaps_work(make_coco: Make, ids: tuple[int, ...]) -> None:
    def renumber(content: dict[str, Any]) -> None:
        numbers = dict(zip((7, 3, 90), ids, strict=True))
        content["categories"] = [{**each, "id": numbers[each["id"]]} for each in content["categories"]]
        for each in content["annotations"]:
            each["category_id"] = numbers[each["category_id"]]

    root = make_coco(renumber)
    (root / "annotations" / "instances_val.json").write_text(
        (root / "annotations" / "instances_train.json").read_text()
    )
    samples = build(root, "val")
    assert samples.category_ids == tuple(sorted(ids))
    assert [samples.category_ids[label] for label in samples[0, 0]["target"]["labels"].tolist()] == list(ids)


def test_validation_has_the_files_own_boxes_areas_and_sizes(make_coco: Make) -> None:
    sample = build(make_coco(), "val")[0, 1]
    target = sample["target"]
    assert sample["id"] == "p1.png"
    assert sample["image"].shape == (3, 40, 60)
    assert target["boxes"].dtype == target["areas"].dtype == torch.float64
    assert target["boxes"][0].tolist() == [6, 5, 18, 15]
    assert target["areas"].tolist() == [100, 101, 102]
    assert target["crowd"].tolist() == [False] * 3
    assert "masks" not in target


def test_a_picture_without_things_counts_and_trains(make_coco: Make) -> None:
    samples = build(make_coco())
    assert len(samples) == 3
    target = samples[0, 2]["target"]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].dtype == torch.int64
    assert build(make_coco(), masks=True)[0, 2]["target"]["masks"].shape[0] == 0


def test_first_takes_only_so_many_pictures_of_each_split(make_coco: Make) -> None:
    root = make_coco()
    assert [len(build(root, split, first=2)) for split in ("train", "val")] == [2, 2]
    assert [build(root, "val", first=2)[0, index]["id"] for index in range(2)] == ["p0.png", "p1.png"]
    assert len(build(root, first=100)) == len(build(root))


def test_crowds_are_not_learnt_from_and_told_in_validation(make_coco: Make) -> None:
    def gather(content: dict[str, Any]) -> None:
        content["annotations"][1]["iscrowd"] = 1
        content["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": [100, 50, 2250]}

    root = make_coco(gather)
    assert build(root, augment=PLAIN, masks=True)[0, 0]["target"]["labels"].tolist() == [1, 2]
    (root / "annotations" / "instances_val.json").write_text(
        (root / "annotations" / "instances_train.json").read_text()
    )
    target = build(root, "val", masks=True)[0, 0]["target"]
    assert target["crowd"].tolist() == [False, True, False]
    assert target["masks"].shape == (3, 40, 60)
    assert int(target["masks"][1].sum()) == 50


def test_image_ids_are_kept_for_predictions(make_coco: Make) -> None:
    assert build(make_coco(), "val").image_ids == {"p0.png": 10, "p1.png": 11, "p2.png": 12}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["categories"].__setitem__(0, {"id": 7, "name": "wolf"}),
        lambda content: content["categories"].append({"id": 91, "name": "wolf"}),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_splits_that_mean_different_things_are_refused(make_coco: Make, change: Any, split: Split) -> None:
    with pytest.raises(DataError, match=r"instances_train.json and .*|instances_val.json and .*") as caught:
        build(make_coco(change), split)
    assert "categories differ" in str(caught.value)
    assert "'wolf'" in str(caught.value)


def test_another_order_of_categories_is_no_difference(make_coco: Make) -> None:
    assert build(make_coco(lambda content: content["categories"].reverse())).category_ids == (3, 7, 90)


def test_categories_are_found_wherever_the_word_occurs_too(make_coco: Make) -> None:
    root = make_coco(lambda content: content.update(info={"categories": "none"}))
    found = read_categories(root / "annotations" / "instances_train.json")
    assert found == {3: "cat", 7: "dog", 90: "bird"}


def test_a_missing_root_or_folder_shows_the_layout(tmp_path: Path, make_coco: Make) -> None:
    with pytest.raises(DataError, match=r"data.root=ROOT; expected"):
        DATA.create("coco", {}).build("train")
    with pytest.raises(DataError, match=r"no instances_train\*.json; expected"):
        build(tmp_path)
    with pytest.raises(DataError, match="no folder here; expected"):
        build(make_coco(), train_images="here")


def test_files_and_folders_may_be_given(make_coco: Make) -> None:
    root = make_coco()
    (root / "annotations" / "instances_train2014.json").write_text("{}")
    with pytest.raises(DataError, match="say which with"):
        build(root)
    (root / "elsewhere").mkdir()
    (root / "annotations" / "instances_train.json").rename(root / "elsewhere" / "t.json")
    (root / "images" / "train").rename(root / "elsewhere" / "pictures")
    assert len(build(root, train_annotations="elsewhere/t.json", train_images="elsewhere/pictures")) == 3


def test_cocos_own_folders_are_found(make_coco: Make) -> None:
    root = make_coco()
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").rename(root / "annotations" / f"instances_{split}2017.json")
        (root / "images" / split).rename(root / f"{split}2017")
    assert build(root)[0, 0]["image"].shape[0] == 3
    assert build(root, "val")[0, 0]["image"].shape == (3, 40, 60)


def test_a_box_that_sticks_out_is_cut_in_training_and_kept_in_validation(make_coco: Make) -> None:
    root = make_coco(lambda content: content["annotations"][0].update(bbox=[-1.5, 30, 20, 12]))
    samples = build(root, augment=PLAIN)
    assert samples[0, 0]["target"]["boxes"][0].tolist() == [0, 30, 18.5, 40]
    assert samples.survey().clipped == 1
    assert samples.audit() == []
    (root / "annotations" / "instances_val.json").write_text(
        (root / "annotations" / "instances_train.json").read_text()
    )
    assert build(root, "val")[0, 0]["target"]["boxes"][0].tolist() == [-1.5, 30, 18.5, 42]


def test_a_bad_outline_spoils_a_box_only_where_masks_are_wanted(make_coco: Make) -> None:
    root = make_coco(lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3, 4]]))
    for masks, count in ((False, 3), (True, 2)):
        samples = build(root, augment=PLAIN, masks=masks)
        assert len(samples[0, 0]["target"]["boxes"]) == count
        (fault,) = samples.audit()
        assert "annotations[0] (id 1): segmentation: polygon 0 has 4 numbers" in fault


def test_bccd_has_all_its_cells(shared_data: Path) -> None:
    train, val = (build(shared_data / "bccd", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (205, 87)
    assert train.category_ids == val.category_ids == (1, 2, 3)
    assert train.classes == ("RBC", "WBC", "Platelets")
    assert int(train.survey().things.sum()) == 2804
    assert train.audit(limit=5) == val.audit(limit=5) == []
    content = json.loads((shared_data / "bccd" / "annotations" / "instances_val.json").read_text())
    image = next(each for each in content["images"] if each["file_name"] == val[0, 3]["id"])
    theirs = [each for each in content["annotations"] if each["image_id"] == image["id"]]
    target = val[0, 3]["target"]
    assert [val.category_ids[label] for label in target["labels"]] == [each["category_id"] for each in theirs]
    boxes = np.array([each["bbox"] for each in theirs])
    assert np.array_equal(target["boxes"][:, 2:].numpy() - target["boxes"][:, :2].numpy(), boxes[:, 2:])


def coco128(root: Path, name: str, **options: object) -> BoxSamples:
    place = f"annotations/instances_{name}.json"
    return build(root / "coco128_train", "val", val_annotations=place, train_annotations=place, **options)


def test_cocos_gappy_ids_come_through(shared_data: Path) -> None:
    samples = coco128(shared_data, "box")
    content = json.loads((shared_data / "coco128_train" / "annotations" / "instances_box.json").read_text())
    assert len(samples.classes) == 80
    assert samples.category_ids[-1] == 90
    assert len(samples) == 128
    found = samples.survey()
    assert found.empty == 2
    assert int(found.things.sum()) + found.crowds == len(content["annotations"]) == 929
    names = {each["id"]: each["name"] for each in content["categories"]}
    assert samples.classes == tuple(names[number] for number in samples.category_ids)


def test_masks_are_those_of_pycocotools(shared_data: Path) -> None:
    from pycocotools.coco import COCO

    reference = COCO(str(shared_data / "coco128_train" / "annotations" / "instances_mask.json"))
    samples = coco128(shared_data, "mask", masks=True)
    crowds = 0
    for index in range(0, len(samples), 4):
        target = samples[0, index]["target"]
        wanted = reference.imgToAnns[samples.image_ids[samples[0, index]["id"]]]
        assert len(wanted) == len(target["masks"])
        for mask, each in zip(target["masks"], wanted, strict=True):
            assert np.array_equal(mask.numpy(), reference.annToMask(each).astype(bool))
        crowds += sum(each["iscrowd"] for each in wanted)
    assert crowds >= 3


def test_polygons_are_drawn_as_pycocotools_draws_them(shared_data: Path) -> None:
    from pycocotools.coco import COCO

    place, root = "coco_annotations.json", shared_data / "voc_sample"
    reference = COCO(str(root / place))
    options = {"val_annotations": place, "train_annotations": place, "val_images": ".", "train_images": "."}
    samples = build(root, "val", masks=True, **options)
    assert samples.category_ids[0] == 0
    for index in range(len(samples)):
        sample = samples[0, index]
        wanted = reference.imgToAnns[samples.image_ids[sample["id"]]]
        for mask, each in zip(sample["target"]["masks"], wanted, strict=True):
            assert np.array_equal(mask.numpy(), reference.annToMask(each).astype(bool))

"""`voc_boxes`: corners that count from 1, difficult objects as crowds, lists, layouts and other classes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vitdense.contracts import DATA, Split
from vitdense.data.boxes.samples import BoxSamples
from vitdense.errors import DataError

Make = Callable[..., Path]
OBJECT = (
    "<object><name>cell</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>60.0</xmax><ymax>40</ymax></bndbox></object>"
)


def build(root: Path, split: Split = "val", **options: object) -> BoxSamples:
    samples = DATA.create("voc_boxes", {"root": str(root), **options}).build(split)
    assert isinstance(samples, BoxSamples)
    return samples


def test_boxes_count_from_1_and_hold_both_corners(make_voc: Make) -> None:
    samples = build(make_voc())
    assert samples.audit() == []
    assert len(samples) == 3
    assert len(samples.classes) == 20
    sample = samples[0, 0]
    assert sample["id"] == "p0"
    target = sample["target"]
    assert target["boxes"].tolist() == [[6, 5, 18, 15]]
    assert sample["image"][0, 5:15, 6:18].float().mean() > 200  # the red rectangle is just there
    assert target["areas"].tolist() == [120]
    assert samples.classes[int(target["labels"][0])] == "dog"
    assert samples[0, 1]["target"]["boxes"].tolist() == [[0, 0, 60, 40]]


def test_difficult_objects_are_ignored_and_not_learnt_from(make_voc: Make) -> None:
    root = make_voc()
    assert build(root)[0, 1]["target"]["crowd"].tolist() == [True]
    assert len(build(root, "train", augment={"kind": "none"})[0, 1]["target"]["boxes"]) == 0


def test_a_picture_without_objects_counts(make_voc: Make) -> None:
    assert build(make_voc())[0, 2]["target"]["boxes"].shape == (0, 4)


def test_other_classes_and_lists_may_be_given(make_voc: Make) -> None:
    root = make_voc(OBJECT)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("p0 1\n\np0\n")
    samples = build(root, "train", classes=["wall", "cell"], train_list="trainval", augment={"kind": "none"})
    assert len(samples) == 1
    assert samples[0, 0]["target"]["labels"].tolist() == [1]
    assert samples.category_ids == ()


def test_the_devkits_folders_are_found(make_voc: Make, tmp_path: Path) -> None:
    root = make_voc()
    (tmp_path / "VOCdevkit").mkdir()
    inside = tmp_path / "VOCdevkit" / "VOC2007"
    inside.mkdir()
    for name in ("JPEGImages", "Annotations", "ImageSets"):
        (root / name).rename(inside / name)
    assert len(build(tmp_path)) == 3


def test_what_is_missing_is_told(make_voc: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="JPEGImages and Annotations; expected"):
        build(tmp_path)
    with pytest.raises(DataError, match=r"data.root=ROOT; expected"):
        DATA.create("voc_boxes", {}).build("val")
    root = make_voc()
    with pytest.raises(DataError, match=r"test.txt: no such file; expected"):
        build(root, val_list="test")
    with pytest.raises(DataError, match="different names"):
        build(root, classes=["a", "a"])
    (root / "Annotations" / "p1.xml").unlink()
    (root / "JPEGImages" / "p2.jpg").unlink()
    missing, unread = build(root).audit()
    assert missing.endswith("p1.xml: no such file")
    assert "p2.xml" in unread
    assert unread.endswith("p2.jpg: no such file")


def test_a_file_without_a_size_takes_the_pictures(make_voc: Make) -> None:
    samples = build(make_voc("<annotation></annotation>"))
    assert samples.audit() == []
    assert samples.records[0].size == (40, 60)

"""`yolo`: shares become pixels, outlines become boxes, names and splits from data.yaml."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vitdense.contracts import DATA, Split
from vitdense.data.boxes.samples import BoxSamples
from vitdense.errors import DataError

Make = Callable[..., Path]


def build(root: Path, split: Split = "val", **options: object) -> BoxSamples:
    samples = DATA.create("yolo", {"root": str(root), **options}).build(split)
    assert isinstance(samples, BoxSamples)
    return samples


def test_shares_become_pixels(make_yolo: Make) -> None:
    samples = build(make_yolo())
    assert samples.audit() == []
    assert samples.classes == ("dog", "cat")
    target = samples[0, 0]["target"]
    assert samples[0, 0]["id"] == "p0.png"
    assert target["boxes"].tolist() == [[pytest.approx(value) for value in (6, 5, 18, 15)]]
    assert target["labels"].tolist() == [0]


def test_the_box_of_an_outline_is_around_it(make_yolo: Make) -> None:
    target = build(make_yolo())[0, 1]["target"]
    assert target["boxes"].tolist() == [[pytest.approx(value) for value in (6, 4, 30, 20)]]
    assert target["labels"].tolist() == [1]


def test_a_picture_without_a_label_file_shows_nothing(make_yolo: Make) -> None:
    samples = build(make_yolo())
    assert len(samples) == 3
    assert samples[0, 2]["target"]["boxes"].shape == (0, 4)


def test_masks_need_outlines(make_yolo: Make) -> None:
    samples = build(make_yolo(), masks=True)
    (fault,) = samples.audit()
    assert "p0.txt:1: a box alone, but data.masks=true" in fault
    mask = samples[0, 1]["target"]["masks"]
    assert mask.shape == (1, 40, 60)
    assert int(mask.sum()) == pytest.approx(0.5 * 24 * 16, abs=12)  # a triangle


def test_names_may_have_gaps(make_yolo: Make) -> None:
    samples = build(make_yolo("7 0.5 0.5 0.1 0.1\n2 0.5 0.5 0.1 0.1\n", "names: {7: dog, 2: cat, 1: cow}\n"))
    assert samples.category_ids == (1, 2, 7)
    assert samples.classes == ("cow", "cat", "dog")
    assert samples[0, 0]["target"]["labels"].tolist() == [2, 1]


def test_splits_are_folders_lists_or_several(make_yolo: Make) -> None:
    root = make_yolo()
    (root / "some.txt").write_text("images/val/p0.png\n./images/val/p2.png\n")
    for given, count in (("images/train", 3), ("some.txt", 2), ("[images/train, some.txt]", 5)):
        (root / "data.yaml").write_text(f"names: [dog, cat]\nval: {given}\n")
        assert len(build(root)) == count
    (root / "data.yaml").write_text(f"path: {root / 'images'}\nnames: [dog, cat]\nval: train\n")
    assert len(build(root)[0, 0]["target"]["boxes"]) == 1


def test_a_split_without_any_label_is_a_fault(make_yolo: Make) -> None:
    root = make_yolo()
    for path in (root / "labels" / "val").glob("*.txt"):
        path.unlink()
    (fault,) = build(root).audit()
    assert "not one of 3 pictures has a label file" in fault


def test_labels_without_a_picture_and_broken_pictures_are_faults(make_yolo: Make) -> None:
    root = make_yolo()
    (root / "labels" / "val" / "q.txt").write_text("")
    (root / "images" / "val" / "p0.png").write_bytes(b"")
    samples = build(root)
    stray, broken = samples.audit()
    assert "q.txt: no picture belongs to it" in stray
    assert "p0.png: the file is empty" in broken
    assert len(samples) == 2


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.root=ROOT; expected"):
        DATA.create("yolo", {}).build("val")
    with pytest.raises(DataError, match=r"data.yaml: no such file; expected"):
        build(tmp_path)

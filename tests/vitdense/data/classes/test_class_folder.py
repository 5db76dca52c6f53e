"""Pictures of one class each, in folders and tables: sorted names, cuts, and one error for each fault of the layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.contracts import DATA, Samples, Split
from vitdense.data.classes.class_folder import ClassSamples
from vitdense.data.classes.shapes_classes import ShapeClassSamples
from vitdense.errors import DataError


def write(root: Path, names: dict[str, int]) -> Path:
    for name, count in names.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(np.full((20, 30, 3), 9 * number, np.uint8)).save(root / name / f"p{number}.png")
    return root


def build(name: str, split: Split = "train", **options: object) -> Samples:
    return DATA.create(name, {"size": 16, **options}).build(split)


def labels(samples: Samples) -> list[int]:
    return [samples[0, index]["label"] for index in range(len(samples))]


@pytest.mark.parametrize("held", ["val", "test"])
def test_classes_are_the_sorted_folders_of_training(tmp_path: Path, held: str) -> None:
    write(tmp_path / "train", {"dog": 2, "cat": 1, "great ape": 1})
    write(tmp_path / held, {"dog": 1, "cat": 2})
    train, val = build("class_folder", root=str(tmp_path)), build("class_folder", "val", root=str(tmp_path))
    assert train.classes == val.classes == ("cat", "dog", "great ape")
    assert labels(train) == [0, 1, 1, 2]
    assert labels(val) == [0, 0, 1]
    assert val[0, 0]["id"] == "cat/p0.png"
    assert val[0, 0]["image"].shape == (3, 16, 16)
    assert train.audit() == val.audit() == []


def test_validation_alone_names_its_own_classes(tmp_path: Path) -> None:
    write(tmp_path / "val", {"b": 1, "a": 1})
    assert build("class_folder", "val", root=str(tmp_path)).classes == ("a", "b")
    with pytest.raises(DataError, match="no folder of the split 'train'; expected"):
        build("class_folder", root=str(tmp_path))


def test_folders_of_classes_alone_are_both_splits_or_cut(tmp_path: Path) -> None:
    write(tmp_path, {"b": 15, "a": 15})
    both = [build("class_folder", split, root=str(tmp_path)) for split in ("train", "val")]
    assert [len(samples) for samples in both] == [30, 30]
    cut = [build("class_folder", split, root=str(tmp_path), val_every=3) for split in ("train", "val")]
    assert all(isinstance(samples, ClassSamples) for samples in cut)
    ids = [set(samples.ids) for samples in cut if isinstance(samples, ClassSamples)]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 30
    assert min(map(len, ids)) > 2


def test_a_table_of_paths_and_labels(tmp_path: Path) -> None:
    write(tmp_path, {"x": 3})
    (tmp_path / "t.csv").write_text("path,label\nx/p0.png,dog\nx/p1.png,cat\nx/p2.png,\nx/gone.png,cat\n")
    samples = build("class_folder", root=str(tmp_path), train="t.csv")
    assert samples.classes == ("cat", "dog")
    assert [samples[0, index]["label"] for index in range(2)] == [1, 0]
    faults = samples.audit()
    assert len(faults) == 2
    assert "t.csv:4: label is empty" in faults[0]
    assert "gone.png: no such file" in faults[1]


@pytest.mark.parametrize("names", [("Cat", "cat"), ("a b", "ab"), ("a  b", "a b")])
def test_classes_that_differ_in_case_or_spaces_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    write(tmp_path / "train", dict.fromkeys(names, 1))
    with pytest.raises(DataError, match="differ in case or spaces only"):
        build("class_folder", root=str(tmp_path))


def test_an_empty_class_is_a_fault_and_keeps_its_place(tmp_path: Path) -> None:
    write(tmp_path / "train", {"a": 1, "b": 0, "c": 1})
    samples = build("class_folder", root=str(tmp_path))
    assert samples.classes == ("a", "b", "c")
    assert labels(samples) == [0, 2]
    assert [fault.rsplit("/", 1)[1] for fault in samples.audit()] == ["b: no pictures of this class"]
    assert isinstance(samples, ClassSamples)
    assert samples.survey().to_json()["classes"] == {"a": 1, "b": 0, "c": 1}


def test_layouts_that_hold_nothing_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no classes; expected"):
        build("class_folder", root=str(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        build("class_folder", root=str(tmp_path / "gone"))
    write(tmp_path / "train", {"a": 1})
    write(tmp_path / "val", {"a": 1, "z": 1})
    with pytest.raises(DataError, match="classes that the training split does not have: 'z'"):
        build("class_folder", "val", root=str(tmp_path))


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train", {"a": 2})
    (tmp_path / "train" / "a" / "p1.png").write_bytes(b"x")
    samples = build("class_folder", root=str(tmp_path))
    assert "p1.png: not a picture" in samples.audit(limit=1)[0]
    with pytest.raises(DataError, match=r"p1\.png: not a picture"):
        samples[0, 1]


def test_training_views_come_again(tmp_path: Path) -> None:
    samples = build("class_folder", root=str(write(tmp_path, {"a": 3})), augment={"color_jitter_prob": 1.0})
    assert torch.equal(samples[3, 1]["image"], samples[3, 1]["image"])
    assert not torch.equal(samples[3, 1]["image"], samples[4, 1]["image"])


def test_real_pictures(shared_data: Path) -> None:
    samples = build("class_folder", "val", root=str(shared_data / "cifar10_subset"))
    assert len(samples.classes) == 10
    assert samples.classes[0] == "airplane"
    assert samples.audit(limit=2) == []


def test_embedded_classes_name_the_one_shape() -> None:
    kinds, colours = build("shapes_kinds", "val", size=48), build("shapes_colours", "val", size=48)
    assert kinds.classes == ("circle", "square", "triangle", "star", "ring")
    assert colours.classes[0] == "red"
    assert torch.equal(kinds[0, 5]["image"], colours[0, 5]["image"])
    for samples in (kinds, colours):
        assert isinstance(samples, ShapeClassSamples)
        found = samples.survey().to_json()["classes"]
        assert sum(found.values()) == 200
        assert min(found.values()) > 10

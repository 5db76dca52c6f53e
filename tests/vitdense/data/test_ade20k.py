"""`ade20k`: both layouts, 0 becoming IGNORE once, and a message that says how to get the data."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.contracts import DATA, IGNORE, Split
from vitdense.data.ade20k import CLASSES, PALETTE
from vitdense.errors import DataError


def write(root: Path, part: str, name: str, values: list[int]) -> None:
    for folder in ("images", "annotations"):
        (root / folder / part).mkdir(parents=True, exist_ok=True)
    mask = np.array([values], np.uint8)
    Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(root / "images" / part / f"{name}.jpg")
    Image.fromarray(mask).save(root / "annotations" / part / f"{name}.png")


def test_there_are_150_classes_and_colours() -> None:
    assert len(CLASSES) == len(PALETTE) == len(set(CLASSES)) == 150
    assert (CLASSES[0], CLASSES[-1]) == ("wall", "flag")
    assert (PALETTE[0], PALETTE[-1]) == ((120, 120, 120), (92, 0, 255))


def test_names_are_those_of_the_benchmark_in_its_order(shared_data: Path) -> None:
    with (shared_data / "ade20k_sample" / "object150_info.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 150
    for name, row in zip(CLASSES, rows, strict=True):
        assert set(name.split()) <= set(row["Name"].split(";"))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("inner", ["", "ADEChallengeData2016"])
def test_the_official_layout_is_read(tmp_path: Path, split: Split, inner: str) -> None:
    write(tmp_path / inner, "training", "ADE_train_1", [0, 1, 150])
    write(tmp_path / inner, "validation", "ADE_val_1", [0, 1, 150])
    samples = DATA.create("ade20k", {"root": str(tmp_path), "crop": 8}).build(split)
    assert len(samples) == 1
    assert samples[0, 0]["id"] == f"ADE_{split}_1"
    assert set(np.unique(samples[0, 0]["mask"]).tolist()) <= {IGNORE, 0, 149}


def test_zero_is_ignored_and_classes_count_from_zero(tmp_path: Path) -> None:
    write(tmp_path, "training", "a", [0])
    write(tmp_path, "validation", "a", [0, 1, 2, 150])
    samples = DATA.create("ade20k", {"root": str(tmp_path)}).build("val")
    assert samples[0, 0]["mask"].tolist() == [[IGNORE, 0, 1, 149]]


def test_a_value_above_150_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path, "", "a", [0, 151])
    with pytest.raises(DataError, match=r"values without a class: 151; allowed: 1\.\.150, ignored: 0"):
        DATA.create("ade20k", {"root": str(tmp_path)}).build("val")[0, 0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_flat_sample_serves_both_splits(shared_data: Path, split: Split) -> None:
    samples = DATA.create("ade20k", {"root": str(shared_data / "ade20k_sample")}).build(split)
    assert len(samples) == 3
    assert samples.audit() == []


@pytest.mark.parametrize("root", [None, "nowhere"])
def test_missing_data_says_how_to_get_it(root: str | None) -> None:
    with pytest.raises(DataError, match=r"python tools/prepare\.py ade20k (ROOT|nowhere)") as caught:
        DATA.create("ade20k", {"root": root}).build("val")
    assert "data.root" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_split_is_no_sample(tmp_path: Path) -> None:
    write(tmp_path, "validation", "a", [1])
    with pytest.raises(DataError, match="looked for images/training"):
        DATA.create("ade20k", {"root": str(tmp_path)}).build("train")

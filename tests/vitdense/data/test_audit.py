"""The audit: every kind of fault is found before a run, named, and capped; counts are exact."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.contracts import DATA, Split
from vitdense.data.audit import MAX_TOLD, Audit, survey, tables
from vitdense.data.segmentation import PairedSamples

Make = Callable[..., Path]


def build(root: Path, split: Split = "val") -> PairedSamples:
    samples = DATA.create("folder", {"root": str(root)}).build(split)
    assert isinstance(samples, PairedSamples)
    return samples


def mask_of(root: Path, name: str) -> Path:
    return root / "annotations" / "val" / f"{name}.png"


def save(path: Path, values: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> None:
    Image.fromarray(values).save(path)


def test_clean_data_has_no_faults(make_folder: Make) -> None:
    assert build(make_folder()).audit() == []


def test_a_picture_without_a_mask_and_the_reverse_are_told(make_folder: Make) -> None:
    root = make_folder()
    mask_of(root, "p1").rename(mask_of(root, "q1"))
    faults = build(root).audit()
    assert len(faults) == 2
    assert faults[0].endswith(f"images/val/p1.png: no mask {root}/annotations/val/p1.png")
    assert faults[1] == f"{mask_of(root, 'q1')}: no picture {root}/images/val/q1.*"


def test_two_files_of_one_name_are_told(make_folder: Make) -> None:
    root = make_folder()
    save(root / "images" / "val" / "p1.jpg", np.zeros((40, 48), np.uint8))
    (fault,) = build(root).audit()
    assert "2 files are named p1: p1.jpg, p1.png" in fault


def test_a_mask_of_another_size_is_told_from_headers(make_folder: Make) -> None:
    root = make_folder()
    save(mask_of(root, "p1"), np.zeros((20, 48), np.uint8))
    (fault,) = build(root).audit(limit=0)
    assert "p1.png: the mask is 48 x 20" in fault


def test_a_value_without_a_class_is_told_with_its_file(make_folder: Make) -> None:
    root = make_folder()
    save(mask_of(root, "p1"), np.full((40, 48), 9, np.uint8))
    (fault,) = build(root).audit()
    assert fault == f"{mask_of(root, 'p1')}: values without a class: 9; allowed: 0..2, ignored: 255"


def test_a_damaged_picture_is_told(make_folder: Make) -> None:
    root = make_folder()
    path = root / "images" / "val" / "p1.png"
    os.truncate(path, path.stat().st_size // 2)
    (fault,) = build(root).audit()
    assert fault.startswith(str(path))


def test_a_limit_reads_that_many_pairs_spread_evenly(make_folder: Make) -> None:
    root = make_folder()
    for name in ("p1", "p3"):
        save(mask_of(root, name), np.full((40, 48), 9, np.uint8))
    assert [Path(fault.split(":")[0]).name for fault in build(root).audit(limit=2)] == ["p3.png"]
    assert build(root).audit(limit=0) == []


def test_many_faults_of_a_kind_are_counted(make_folder: Make) -> None:
    root = make_folder(count=MAX_TOLD + 5)
    for path in (root / "annotations" / "val").iterdir():
        save(path, np.full((40, 48), 9, np.uint8))
    faults = build(root).audit()
    assert len(faults) == MAX_TOLD + 1
    assert faults[-1] == "... and 5 more bad masks"


def test_progress_is_reported(make_folder: Make) -> None:
    told: list[str] = []
    build(make_folder()).audit(report=told.append)
    assert told == ["6 of 6 pictures"]


def test_a_survey_counts_pixels_and_pictures_exactly(make_folder: Make) -> None:
    root = make_folder(count=2)
    save(mask_of(root, "p0"), np.zeros((40, 48), np.uint8))
    save(mask_of(root, "p1"), np.array([[1] * 24 + [255] * 24] * 40, np.uint8))
    found = survey(build(root)).to_json()
    assert found["pictures"] == found["masks_read"] == 2
    assert found["sizes"] == {"40x48": 2}
    assert found["ignored"] == pytest.approx(0.25)
    assert found["classes"]["class0"] == {"share": pytest.approx(2 / 3), "pictures": 1}
    assert found["classes"]["class1"] == {"share": pytest.approx(1 / 3), "pictures": 1}
    assert found["classes"]["class2"] == {"share": 0.0, "pictures": 0}


def test_a_data_set_without_files_is_surveyed_by_drawing() -> None:
    audit = survey(DATA.create("shapes", {"size": 32, "val_size": 6}).build("val"))
    assert isinstance(audit, Audit)
    assert audit.read == 6
    assert audit.faults == []
    assert audit.sizes == {(32, 32): 6}


def test_the_table_has_a_row_for_each_class(make_folder: Make) -> None:
    (table,) = tables([("val", survey(build(make_folder())))])
    assert table.row_count == 3
    assert "6 pictures" in str(table.title)


def test_drawn_depth_is_counted_as_measured() -> None:
    config = DATA.create("shapes_depth", {"size": 32, "val_size": 3})
    found = survey(config.build("val")).to_json()
    assert found["classes"] == {"measured": {"share": 1.0, "pictures": 3}}
    assert found["sizes"] == {"32x32": 3}

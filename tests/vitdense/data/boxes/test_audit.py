"""The audit of boxes: counts, faults by kind, tables, and pictures that are looked at or read in full."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdense.contracts import DATA
from vitdense.data.audit import MAX_TOLD, survey, tables
from vitdense.data.boxes.audit import BoxAudit
from vitdense.data.boxes.samples import BoxSamples
from vitdense.data.loader import train_loader
from vitdense.errors import DataError

Make = Callable[..., Path]


def build(root: Path, **options: object) -> BoxSamples:
    samples = DATA.create("coco", {"root": str(root), **options}).build("train")
    assert isinstance(samples, BoxSamples)
    return samples


def test_a_survey_counts_things_pictures_and_what_is_special(make_coco: Make) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][1]["bbox"] = [50, 10, 20, 10]

    reports: list[str] = []
    found = build(make_coco(change)).survey(reports.append).to_json()
    assert reports == ["3 of 3 pictures"]
    assert (found["pictures"], found["pictures_read"], found["pictures_without_things"]) == (3, 3, 1)
    assert (found["things"], found["crowds"], found["clipped_boxes"]) == (5, 1, 1)
    assert found["sizes"] == {"40x60": 3}
    assert found["classes"]["dog"] == {"things": 1, "pictures": 1}
    assert found["classes"]["cat"] == {"things": 2, "pictures": 2}
    assert found["faults"] == []


def test_a_damaged_picture_is_found_where_it_is_read_in_full(make_coco: Make) -> None:
    root = make_coco()
    path = root / "images" / "train" / "p1.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert build(root).audit(limit=0) == []
    (fault,) = build(root).audit()
    assert r"images[1] (id 11): " in fault
    assert "p1.png" in fault


def test_a_turned_picture_has_the_size_that_is_seen(make_coco: Make) -> None:
    root = make_coco(lambda content: content["images"][1].update(file_name="p1.jpg", width=40, height=60))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(root / "images" / "train" / "p1.jpg", exif=exif)
    samples = build(root, augment={"kind": "none"}, fast_decode=True)
    assert samples.audit() == []
    assert samples[0, 1]["image"].shape == (3, 60, 40)


def test_many_faults_of_a_kind_are_counted(make_coco: Make) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"] += [{"image_id": 10, "category_id": 5, "bbox": [1, 1, 5, 5]}] * 14

    faults = build(make_coco(change)).audit()
    assert len(faults) == MAX_TOLD + 1
    assert faults[-1] == "... and 4 more unknown categories"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_size_met_in_training_is_one_message(make_coco: Make, workers: int) -> None:
    root = make_coco(lambda content: [each.update(width=61) for each in content["images"]])
    config = DATA.create("coco", {"root": str(root), "workers": workers, "batch_size": 1})
    with pytest.raises(DataError, match="the record says 61 x 40") as caught:
        list(train_loader(config.build("train"), config, seed=0, start_step=0, num_steps=2))
    assert "Traceback" not in str(caught.value)


def test_the_table_has_a_row_for_each_class(make_coco: Make) -> None:
    (table,) = tables([("train", survey(build(make_coco())))])
    assert table.row_count == 3
    assert str(table.title) == "train: 3 pictures (1 without things), 40x60 (3), 0 crowds, 0 boxes clipped"


def test_drawn_boxes_are_surveyed_too() -> None:
    for split in ("train", "val"):
        audit = survey(DATA.create("shapes_boxes", {"size": 32, "val_size": 6, "train_size": 6}).build(split))
        assert isinstance(audit, BoxAudit)
        assert audit.read == 6
        assert int(audit.things.sum()) > 6
        assert audit.sizes == {(32, 32): 6}

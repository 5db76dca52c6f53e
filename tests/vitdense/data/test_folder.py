"""`folder`: layout, classes.json, ignored values, and messages for everything that doesn't fit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from vitdense.contracts import DATA, IGNORE, Sample, Split
from vitdense.data.segmentation import PairedSamples
from vitdense.errors import DataError

Make = Callable[..., Path]


def build(root: Path, split: Split = "val", **options: object) -> PairedSamples:
    samples = DATA.create("folder", {"root": str(root), "crop": 32, **options}).build(split)
    assert isinstance(samples, PairedSamples)
    return samples


def write_mask(root: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]], name: str = "p0") -> Path:
    path = root / "annotations" / "val" / f"{name}.png"
    Image.fromarray(values).save(path)
    return path


def first(root: Path, **options: object) -> Sample:
    return build(root, "val", **options)[0, 0]


def test_validation_keeps_the_pictures_own_size_and_values(make_folder: Make) -> None:
    root = make_folder()
    sample = first(root)
    picture = np.asarray(Image.open(root / "images" / "val" / "p0.png"))
    assert sample["id"] == "p0"
    assert sample["mask"].dtype == torch.int16
    assert torch.equal(sample["image"], torch.from_numpy(picture.copy()).permute(2, 0, 1))
    assert (sample["mask"][0] == IGNORE).all()
    assert set(np.unique(sample["mask"][1:]).tolist()) == {0, 1, 2}


def test_training_gives_crops(make_folder: Make) -> None:
    sample = build(make_folder(), "train")[0, 0]
    assert sample["image"].shape == (3, 32, 32)
    assert sample["mask"].shape == (32, 32)


def test_a_value_outside_the_classes_names_file_and_value(make_folder: Make) -> None:
    root = make_folder()
    path = write_mask(root, np.full((40, 48), 7, np.uint8))
    with pytest.raises(DataError) as caught:
        first(root)
    assert str(caught.value) == f"{path}: values without a class: 7; allowed: 0..2, ignored: 255"


def test_sixteen_bit_masks_are_read(make_folder: Make) -> None:
    root = make_folder()
    values = np.full((40, 48), 2, np.uint16)
    values[:5] = 9000
    write_mask(root, values)
    mask = first(root, ignore_index=[255, 9000])["mask"]
    assert (mask[:5] == IGNORE).all()
    assert (mask[5:] == 2).all()


def test_a_value_beyond_sixteen_bits_is_a_fault(make_folder: Make) -> None:
    root = make_folder()
    Image.fromarray(np.full((40, 48), 70000, np.int32)).save(root / "annotations" / "val" / "p0.tif")
    (root / "annotations" / "val" / "p0.png").unlink()
    with pytest.raises(DataError, match=r"p0\.tif: values 70000\.\.70000"):
        first(root)


def test_palette_masks_are_read_as_indices(make_folder: Make) -> None:
    root = make_folder()
    image = Image.fromarray(np.ones((40, 48), np.uint8)).convert("P")
    image.putpalette([9, 9, 9] * 256)
    image.putdata([1] * (40 * 48))
    image.save(root / "annotations" / "val" / "p0.png")
    assert (first(root)["mask"] == 1).all()


@pytest.mark.parametrize("ignored", [255, [255, 1]])
def test_ignore_index_of_the_recipe_replaces_that_of_the_file(make_folder: Make, ignored: object) -> None:
    root = make_folder()
    write_mask(root, np.full((40, 48), 1, np.uint8))
    assert (first(root, ignore_index=ignored)["mask"] == (IGNORE if isinstance(ignored, list) else 1)).all()


def test_a_mask_of_another_size_names_both(make_folder: Make) -> None:
    root = make_folder()
    write_mask(root, np.zeros((48, 40), np.uint8))
    with pytest.raises(DataError, match=r"annotations/val/p0\.png: the mask is 40 x 48, but .*p0\.png is 48 x 40"):
        first(root)


def test_a_picture_without_a_mask_is_a_fault(make_folder: Make) -> None:
    root = make_folder()
    (root / "annotations" / "val" / "p0.png").unlink()
    with pytest.raises(DataError, match=r"annotations/val/p0\.png: no such file"):
        first(root)


def test_masks_of_other_formats_and_nested_folders_are_paired(make_folder: Make) -> None:
    root = make_folder(count=1)
    for folder, suffix in (("images", ".jpg"), ("annotations", ".tiff")):
        path = root / folder / "val" / "city" / f"q{suffix}"
        path.parent.mkdir()
        Image.fromarray(np.zeros((40, 48), np.uint8)).save(path)
    samples = build(root)
    assert [pair.id for pair in samples.pairs] == ["city/q", "p0"]
    assert samples[0, 0]["mask"].shape == (40, 48)


@pytest.mark.parametrize("missing", ["images/val", "annotations/val", "classes.json"])
def test_a_missing_part_shows_the_expected_layout(make_folder: Make, missing: str) -> None:
    root = make_folder()
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(DataError, match="expected") as caught:
        build(root)
    assert str(root / missing) in str(caught.value)
    assert "images/{train,val}/x.jpg" in str(caught.value)


def test_no_root_shows_the_expected_layout() -> None:
    with pytest.raises(DataError, match=r"needs data\.root=ROOT"):
        DATA.create("folder").build("train")


def test_an_empty_folder_is_a_fault(make_folder: Make) -> None:
    root = make_folder(count=1)
    (root / "images" / "val" / "p0.png").unlink()
    with pytest.raises(DataError, match="no pictures"):
        build(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON"),
        ('{"classes": "road"}', "classes"),
        ('{"classes": []}', "a list of different names"),
        ('{"classes": ["a", "a"]}', "a list of different names"),
        ('{"classes": ["a"], "ignore": 3}', "ignore"),
        ('{"classes": ["a", "b"], "palette": [[1, 2, 3]]}', "for each of the 2 classes"),
        ('{"classes": ["a"], "palette": [[1, 2, 300]]}', "0..255"),
    ],
)
def test_a_bad_classes_file_says_what_is_wrong(make_folder: Make, content: str, message: str) -> None:
    root = make_folder(count=1)
    (root / "classes.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        build(root)
    assert str(caught.value).startswith(str(root / "classes.json"))


def test_a_palette_is_made_where_none_is_given(make_folder: Make) -> None:
    samples = build(make_folder())
    assert len(set(samples.palette)) == len(samples.classes) == 3


def test_the_palette_of_the_file_is_used(make_folder: Make) -> None:
    root = make_folder(count=1)
    (root / "classes.json").write_text(json.dumps({"classes": ["a"], "palette": [[1, 2, 3], [0, 0, 0]]}))
    assert build(root).palette == ((1, 2, 3),)


def test_camvid_reads_whole(shared_data: Path) -> None:
    samples = build(shared_data / "camvid")
    assert len(samples) == 101
    assert len(samples.classes) == len(samples.palette) == 11
    sample = samples[0, 50]
    assert sample["image"].shape == (3, 360, 480)
    assert set(np.unique(sample["mask"]).tolist()) <= {IGNORE, *range(11)}


def test_a_scale_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(ValidationError, match="the smallest factor comes first"):
        DATA.create("folder", {"scale": [2.0, 0.5]})

"""`raster_folder`: crops of many channels without the rest of the raster, labels without missing pixels, faults."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from vitdense.contracts import DATA, IGNORE, Split
from vitdense.data.audit import survey
from vitdense.data.rasters.raster_folder import RasterSamples
from vitdense.errors import DataError

Make = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two rasters (60, 80, 6) a split in 16 bits, the labels of one as .npy, of the other as .png."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(2):
            pixels = generator.integers(1, 5000, (60, 80, 6)).astype(np.uint16)
            mask = generator.integers(0, 3, (60, 80)).astype(np.uint8)
            mask[0] = 255
            pixels[30:40, 30:40] = 0
            for folder, values in (("images", pixels), ("annotations", mask)):
                (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
                path = tmp_path / folder / split / f"s{number}.npy"
                if folder == "annotations" and number == 1:
                    Image.fromarray(values).save(path.with_suffix(".png"))
                else:
                    np.save(path, values)
    classes = {"classes": ["sea", "land", "town"], "ignore_index": 255}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    return tmp_path


def build(root: Path, split: Split = "val", **options: Any) -> RasterSamples:
    given = {"root": str(root), "crop": 32, "in_channels": 6, "raster": {"scale": 5000, "nodata": 0}, **options}
    samples = DATA.create("raster_folder", given).build(split)
    assert isinstance(samples, RasterSamples)
    return samples


def stored(root: Path, split: str, name: str) -> NDArray[Any]:
    return np.load(root / "images" / split / f"{name}.npy")  # type: ignore[no-any-return]


@pytest.mark.parametrize("index", [0, 1])
def test_validation_gives_all_pixels_and_no_label_where_they_are_missing(root: Path, index: int) -> None:
    sample = build(root, fill=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])[0, index]
    pixels = torch.from_numpy(stored(root, "val", f"s{index}").astype(np.float32) / 5000).permute(2, 0, 1)
    pixels[:, 30:40, 30:40] = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).view(6, 1, 1)
    torch.testing.assert_close(sample["image"], pixels, rtol=0, atol=1e-7)
    assert sample["mask"].dtype == torch.int16
    assert (sample["mask"][30:40, 30:40] == IGNORE).all()
    assert (sample["mask"][0] == IGNORE).all()
    assert sample["mask"][1:30].min() == 0


def test_a_crop_at_its_own_scale_is_a_window_of_the_raster(root: Path) -> None:
    samples = build(root, "train", scale=[1.0, 1.0], flip=False)
    pixels = stored(root, "train", "s0").astype(np.float32) / 5000
    found = set()
    for epoch in range(4):
        sample = samples[epoch, 0]
        crop = sample["image"].permute(1, 2, 0).numpy()
        places = [
            (top, left)
            for top in range(29)
            for left in range(49)
            if abs(crop[0, 0] - pixels[top, left]).max() < 1e-6
            and abs(crop[-1, -1] - pixels[top + 31, left + 31]).max() < 1e-6
        ]
        assert len(places) == 1
        found.add(places[0])
        again = samples[epoch, 0]
        assert torch.equal(again["image"], sample["image"])
        assert torch.equal(again["mask"], sample["mask"])
    assert len(found) > 1


@pytest.mark.parametrize("scale", [[0.3, 0.5], [1.5, 2.0]])
def test_crops_of_six_channels_are_resized_and_padded(root: Path, scale: list[float]) -> None:
    sample = build(root, "train", scale=scale, crop=40)[0, 1]
    assert sample["image"].shape == (6, 40, 40)
    assert sample["image"].dtype == torch.float32
    assert sample["mask"].shape == (40, 40)
    if scale[1] < 1:  # the raster is smaller than the crop
        assert (sample["mask"][-1] == IGNORE).all()
        torch.testing.assert_close(sample["image"][:3, -1, -1], torch.tensor([124, 116, 104]) / 255)


def test_an_audit_reads_every_pair(root: Path) -> None:
    found = survey(build(root, "val")).to_json()
    assert found["masks_read"] == 2
    assert found["sizes"] == {"60x80": 2}
    assert found["faults"] == []
    assert found["ignored"] == pytest.approx((80 + 100) / 4800)


def test_what_does_not_fit_is_named(root: Path) -> None:
    np.save(root / "annotations/val/s0.npy", np.zeros((60, 79), np.uint8))
    samples = build(root)
    with pytest.raises(DataError, match=r"s0.npy: the mask is 79 x 60, but .*s0.npy is 80 x 60"):
        samples[0, 0]
    assert len(samples.audit()) == 1
    np.save(root / "annotations/val/s0.npy", np.full((60, 80), 7, np.int32))
    with pytest.raises(DataError, match="values without a class: 7"):
        samples[0, 0]
    np.save(root / "annotations/val/s0.npy", np.zeros((60, 80), np.float32))
    with pytest.raises(DataError, match=r"expected class indices \(H, W\), found \(60, 80\) in float32"):
        samples[0, 0]
    with pytest.raises(DataError, match="no axis of 4 channels"):
        build(root, in_channels=4)[0, 1]
    (root / "images/val/s1.npy").unlink()
    assert "no picture" in build(root).faults[0]


def test_options_that_cannot_be(root: Path) -> None:
    with pytest.raises(ValidationError, match="photometric is for RGB"):
        build(root, photometric=True)
    with pytest.raises(ValidationError, match="fill has 2 numbers for 6 channels"):
        build(root, fill=[0.1, 0.2])
    with pytest.raises(DataError, match=r"data 'raster_folder' needs data.root"):
        DATA.create("raster_folder", {}).build("val")

"""`rgbd`: pictures with depth in files: how they are found, split, cut and checked; metres stay metres."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from vitdense.contracts import DATA, Split
from vitdense.data.rgbd import RgbdSamples
from vitdense.errors import DataError


def write(root: Path, image: str, depth: str, values: np.ndarray | None = None) -> None:
    """A picture whose red says where a pixel is (row), and millimetres 1000 + 10 * row + column."""
    rows, columns = np.indices((20, 30))
    stored = 1000 + 10 * rows + columns if values is None else values
    picture = np.stack([rows * 12, columns * 8, rows * 0], axis=2).astype(np.uint8)
    for name in (image, depth):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(root / image)
    Image.fromarray(stored.astype(np.uint16)).save(root / depth)


def build(root: Path, split: Split = "val", **options: object) -> RgbdSamples:
    samples = DATA.create("rgbd", {"root": str(root), "photometric": False, **options}).build(split)
    assert isinstance(samples, RgbdSamples)
    return samples


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    for number in range(7):
        write(tmp_path, f"f{number}.color.png", f"f{number}.depth.png")
    return tmp_path


PNG = {"image_suffix": ".color.png"}


def test_depth_is_in_metres_and_zero_stays_unknown(tmp_path: Path) -> None:
    write(tmp_path, "val/a.color.jpg", "val/a.depth.png", np.array([[0, 1500, 65535]]).repeat(20, 0).repeat(10, 1))
    (tmp_path / "train").mkdir()
    depth = build(tmp_path)[0, 0]["depth"]
    assert depth.dtype == torch.float32
    assert depth[0, ::10].tolist() == pytest.approx([0, 1.5, 65.535])
    assert build(tmp_path, scale=256)[0, 0]["depth"][0, 10].item() == pytest.approx(1500 / 256)
    assert build(tmp_path, max_depth=10)[0, 0]["depth"][0, ::10].tolist() == pytest.approx([0, 1.5, 0])
    assert build(tmp_path, min_depth=2)[0, 0]["depth"][0, ::10].tolist() == pytest.approx([0, 0, 65.535])


def test_every_nth_frame_is_for_validation(frames: Path) -> None:
    parts = [build(frames, split, val_every=3, **PNG) for split in ("train", "val")]
    names = [[pair.id for pair in samples.pairs] for samples in parts]
    assert names == [["f1", "f2", "f4", "f5"], ["f0", "f3", "f6"]]


def test_lists_name_frames_or_pairs(frames: Path) -> None:
    (frames / "train.txt").write_text("f0\nf4\n\n")
    # KITTI's split files: picture, depth map or None, focal length.
    (frames / "val.txt").write_text("/f1.color.png /f1.depth.png 721.5\nf2.color.png None 721.5\n")
    lists = {"train_list": "train.txt", "val_list": "val.txt", **PNG}
    assert [pair.id for pair in build(frames, "train", **lists).pairs] == ["f0", "f4"]
    samples = build(frames, "val", **lists)
    assert [pair.id for pair in samples.pairs] == ["f1.color"]
    assert samples.audit() == []
    (frames / "train.txt").write_text("f9\n")
    assert [fault.split(": ")[1].split(" /")[0] for fault in build(frames, "train", **lists).audit()] == [
        "no such picture",
        "no depth map",
    ]


def test_folders_of_pictures_and_depth_are_paired(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, f"images/s/{number}.jpg", f"depth/s/{number}.png")
    folders = {"image_folder": "images", "depth_folder": "depth", "image_suffix": ".jpg", "depth_suffix": ".png"}
    samples = build(tmp_path, "train", val_every=2, **folders)
    assert [pair.id for pair in samples.pairs] == ["s/1", "s/3"]
    assert samples.audit() == []


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.4, 0.9), (1.1, 2.0)])
def test_pictures_and_depth_are_cut_together_and_metres_stay(frames: Path, zoom: tuple[float, float]) -> None:
    samples = build(frames, "train", val_every=3, crop=(16, 20), zoom=zoom, **PNG)
    for epoch in range(12):
        sample = samples[epoch, 1]
        image, depth = sample["image"].float(), sample["depth"]
        assert (image.shape, depth.shape) == ((3, 16, 20), (16, 20))
        known = depth > 0
        # The red and green of a pixel say which row and column it shows, and so how far away it is.
        told = 1 + 0.01 * image[0] / 12 + 0.001 * image[1] / 8
        assert known.any()
        assert (told - depth)[known].abs().max() < 0.015
        assert known.all() or zoom[0] < 1  # beyond a shrunken picture nothing is known


def test_without_a_crop_whole_pictures_are_trained_on(frames: Path) -> None:
    sample = build(frames, "train", val_every=3, flip=False, **PNG)[0, 0]
    assert sample["depth"].shape == (20, 30)
    assert sample["depth"][3, 4].item() == pytest.approx(1.034)


def test_flips_turn_picture_and_depth_together(frames: Path) -> None:
    samples = build(frames, "train", val_every=3, **PNG)
    flipped = [bool(samples[epoch, 0]["image"][1, 0, 0] > samples[epoch, 0]["image"][1, 0, 29]) for epoch in range(12)]
    assert len(set(flipped)) == 2
    for epoch, turned in enumerate(flipped):
        depth = samples[epoch, 0]["depth"]
        assert bool(depth[0, 0] > depth[0, 29]) == turned


def test_a_sample_depends_on_seed_epoch_and_index_alone(frames: Path) -> None:
    options = {"val_every": 3, "crop": 12, "zoom": (0.7, 1.4), "photometric": True, **PNG}
    one, other = build(frames, "train", **options), build(frames, "train", **options)
    other[5, 2]
    for name in ("image", "depth"):
        assert torch.equal(one[3, 1][name], other[3, 1][name])
        assert not torch.equal(one[3, 1][name], one[4, 1][name])


def test_what_lies_outside_the_crop_is_unknown_in_validation_alone(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path, f"{split}/a.color.jpg", f"{split}/a.depth.png", np.full((480, 640), 2000))
        Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(tmp_path / split / "a.color.jpg")
    depth = build(tmp_path, eval_crop="eigen")[0, 0]["depth"]
    rows, columns = torch.nonzero(depth, as_tuple=True)
    assert [int(n) for n in (rows.min(), rows.max(), columns.min(), columns.max())] == [45, 470, 41, 600]
    assert build(tmp_path, "train", eval_crop="eigen")[0, 0]["depth"].min() == 2


def test_the_audit_names_each_fault_with_its_file(frames: Path) -> None:
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(frames / "f0.depth.png")
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(frames / "f1.depth.png")
    Image.fromarray(np.ones((20, 30), np.uint8)).save(frames / "f2.depth.png")
    (frames / "f3.depth.png").unlink()
    (frames / "f4.depth.png").write_bytes(b"PNG")
    faults = [fault for split in ("train", "val") for fault in build(frames, split, val_every=2, **PNG).audit()]
    text = "\n".join(faults)
    assert f"{frames / 'f0.depth.png'}: the depth map is 6 x 5, but" in text
    assert f"{frames / 'f1.depth.png'}: not one pixel above 0.001 metres that counts, at 1000 units a metre" in text
    assert f"{frames / 'f2.depth.png'}: a depth map is a grey PNG or TIFF of 16 bits, this file has 8" in text
    assert f"{frames / 'f3.color.png'}: no depth map {frames / 'f3.depth.png'}" in text
    assert f"{frames / 'f4.depth.png'}: not a picture in a known format" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no folders train and val, no data.val_every and no lists; expected one of"),
        ({"val_every": 3, "image_suffix": ".tga"}, "no picture of the split 'val'"),
        ({"train_list": "none.txt", "val_list": "none.txt"}, "none.txt: no such file; expected one of"),
    ],
)
def test_what_is_missing_shows_the_layouts(frames: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(frames, "val", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"zoom": (2, 1)},
        {"max_depth": 1, "min_depth": 2},
        {"train_list": "a"},
        {"val_every": 2, "train_list": "a", "val_list": "b"},
        {"val_every": 1},
        {"scale": 0},
        {"eval_crop": "center"},
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DATA.create("rgbd", {"root": ".", **options})


def test_7_scenes_is_read_as_it_is(shared_data: Path) -> None:
    samples = build(shared_data / "rgbd_7scenes", val_every=5)
    assert len(samples) == 8
    sample = samples[0, 0]
    assert (sample["image"].shape, sample["depth"].shape) == ((3, 480, 640), (480, 640))
    assert 0.3 < sample["depth"][sample["depth"] > 0].min() < sample["depth"].max() <= 3.602
    assert samples.audit() == []
    assert len(build(shared_data / "rgbd_7scenes", "train", val_every=5)) == 32

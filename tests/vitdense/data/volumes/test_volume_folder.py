"""Volumes in files: pairs, classes, intensities, crops, and what is told of files that can't be used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitdense.contracts import DATA, IGNORE, Samples, Split
from vitdense.data.audit import survey
from vitdense.data.loader import eval_loader, train_loader
from vitdense.errors import DataError, UserError

SHAPE = (10, 12, 14)
OPTIONS: dict[str, Any] = {"crop": [6, 8, 8], "window": [0, 100], "workers": 0, "batch_size": 2, "val_every": 3}
NAMES = {"0": "background", "1": "spleen", "2": "liver"}


def write(root: Path, count: int = 3, shape: tuple[int, int, int] = SHAPE) -> Path:
    """BTCV's names; volume i holds 10 i, and the voxels of class 1 are 50 more, of class 2 100 more."""
    for index in range(count):
        labels = np.zeros(shape, np.uint8)
        labels[2:4, 3:6, 4:8], labels[6:8, 2:4, 2:4] = 1, 2
        voxels = (10 * index + 50 * labels).astype(np.int16)
        for folder, name, values in (("imagesTr", "img", voxels), ("labelsTr", "label", labels)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            np.save(root / folder / f"{name}{index + 1:04d}.npy", values)
    (root / "dataset.json").write_text(json.dumps({"labels": NAMES}))
    return root


def build(root: Path, split: Split = "train", **options: object) -> Samples:
    return DATA.create("volume_folder", {"root": str(root), **OPTIONS, **options}).build(split)


def test_pairs_are_found_and_cut_into_splits(tmp_path: Path) -> None:
    train, val = build(write(tmp_path)), build(tmp_path, "val")
    assert (len(train), len(val)) == (2, 1)
    assert train.classes == ("background", "spleen", "liver")
    assert len(train.palette) == 3
    sample = val[0, 0]
    assert sample["id"] == "img0003"
    assert sample["image"].shape == (1, *SHAPE)
    assert sample["image"].dtype == torch.float32
    assert sample["mask"].dtype == torch.int16
    assert sorted(torch.unique(sample["image"]).tolist()) == pytest.approx([0.2, 0.7, 1.0])
    assert train.audit() == []
    assert survey(build(tmp_path, "val")).to_json()["classes"]["spleen"]["pictures"] == 1


def test_training_crops_depend_on_epoch_and_index(tmp_path: Path) -> None:
    train = build(write(tmp_path), shift=0.0)
    seen = set()
    for epoch in range(12):
        sample = train[epoch, 0]
        assert sample["image"].shape == (1, 6, 8, 8)
        assert sample["mask"].shape == (6, 8, 8)
        bright = (sample["image"][0] * 100).round().to(torch.int16)
        assert torch.equal(bright, (50 * sample["mask"]).to(torch.int16))
        assert torch.equal(sample["image"], build(tmp_path, shift=0.0)[epoch, 0]["image"])
        seen.add(bytes(sample["mask"].numpy()))
    assert len(seen) > 8


def test_crops_are_drawn_around_classes(tmp_path: Path) -> None:
    write(tmp_path, shape=(40, 40, 40))
    found = [int(build(tmp_path, foreground=1.0)[epoch, 0]["mask"].max()) for epoch in range(10)]
    assert min(found) >= 1
    scarce = [int(build(tmp_path, foreground=0.0)[epoch, 0]["mask"].max()) for epoch in range(20)]
    assert scarce.count(0) > 5


def test_smaller_volumes_are_filled_without_label(tmp_path: Path) -> None:
    sample = build(write(tmp_path), crop=[16, 8, 20], flip_prob=0.0, shift=0.0)[0, 0]
    assert sample["mask"].shape == (16, 8, 20)
    assert (sample["mask"][10:] == IGNORE).all()
    assert (sample["mask"][..., 14:] == IGNORE).all()
    assert (sample["image"][0, 10:] == 0).all()
    assert (sample["mask"][:10, :, :14] != IGNORE).all()


def test_mirrors_and_brightness(tmp_path: Path) -> None:
    plain = build(write(tmp_path), crop=None, flip_prob=0.0, shift=0.0)[0, 0]
    turned = build(tmp_path, crop=None, flip_prob=1.0, shift=0.0)[0, 0]
    assert torch.equal(turned["image"], plain["image"].flip(1, 2, 3))
    assert torch.equal(turned["mask"], plain["mask"].flip(0, 1, 2))
    shifted = build(tmp_path, crop=None, flip_prob=0.0, shift=0.3)[0, 0]["image"]
    assert not torch.equal(shifted, plain["image"])
    assert 0 <= shifted.min() <= shifted.max() <= 1


def test_numbers_that_are_none_become_the_lowest_or_an_error(tmp_path: Path) -> None:
    write(tmp_path)
    voxels = np.full(SHAPE, 50, np.float32)
    voxels[0, 0, :3] = np.nan, np.inf, -np.inf
    np.save(tmp_path / "imagesTr" / "img0003.npy", voxels)
    image = build(tmp_path, "val")[0, 0]["image"]
    assert image[0, 0, 0, :4].tolist() == [0.0, 1.0, 0.0, 0.5]
    with pytest.raises(DataError, match=r"img0003\.npy: 1 voxels are no numbers; data\.on_nan=lowest"):
        build(tmp_path, "val", on_nan="stop")[0, 0]


def test_bytes_need_no_window_and_other_numbers_do(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=r"holds int16, whose range is not known: set data\.window"):
        build(tmp_path, "val", window=None)[0, 0]
    np.save(tmp_path / "imagesTr" / "img0003.npy", np.full(SHAPE, 255, np.uint8))
    assert torch.unique(build(tmp_path, "val", window=None)[0, 0]["image"]).tolist() == [1.0]


def test_several_channels_come_first(tmp_path: Path) -> None:
    write(tmp_path)
    np.save(tmp_path / "imagesTr" / "img0001.npy", np.zeros((2, *SHAPE), np.float32))
    assert build(tmp_path)[0, 0]["image"].shape == (2, 6, 8, 8)


def test_a_list_says_what_is_for_what(tmp_path: Path) -> None:
    write(tmp_path)
    pairs = [{"image": f"imagesTr/img000{i}.npy", "label": f"labelsTr/label000{i}.npy"} for i in (1, 2, 3)]
    turned = {name: int(number) for number, name in NAMES.items()}
    index = {"labels": turned, "training": pairs[1:], "validation": pairs[:1]}
    (tmp_path / "mine.json").write_text(json.dumps(index))
    assert len(build(tmp_path, index="mine.json")) == 2
    val = build(tmp_path, "val", index="mine.json")
    assert (val.classes, val[0, 0]["id"]) == (("background", "spleen", "liver"), "img0001")


def test_batches_of_crops_and_of_whole_volumes(tmp_path: Path) -> None:
    config = DATA.create("volume_folder", {"root": str(write(tmp_path)), **OPTIONS})
    batch = next(iter(train_loader(config.build("train"), config, seed=0, start_step=0, num_steps=1)))
    assert batch["images"].shape == (2, 1, 6, 8, 8)
    assert batch["masks"].shape == (2, 6, 8, 8)
    (batch,) = eval_loader(config.build("val"), config)
    assert batch["sizes"] == [SHAPE[1:]]


def test_what_can_not_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"imagesTr: no such folder; expected"):
        build(tmp_path, class_names=["a", "b"])
    write(tmp_path)
    np.save(tmp_path / "labelsTr" / "label0003.npy", np.full(SHAPE, 3))
    with pytest.raises(DataError, match=r"label0003\.npy: holds class 3; allowed are 0\.\.2"):
        build(tmp_path, "val")[0, 0]
    assert "label0003.npy: holds class 3" in build(tmp_path, "val").audit()[0]
    np.save(tmp_path / "labelsTr" / "label0003.npy", np.full(SHAPE, 0.5))
    with pytest.raises(DataError, match=r"a label is a whole number, found 0\.5"):
        build(tmp_path, "val")[0, 0]
    np.save(tmp_path / "labelsTr" / "label0003.npy", np.zeros((3, 4, 5)))
    with pytest.raises(DataError, match=r"label0003\.npy: is \(3, 4, 5\), and .*img0003\.npy \(10, 12, 14\)"):
        build(tmp_path, "val")[0, 0]
    (tmp_path / "labelsTr" / "label0003.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"label0003\.npy: the file is empty"):
        build(tmp_path, "val")[0, 0]
    (tmp_path / "labelsTr" / "label0003.npy").unlink()
    with pytest.raises(DataError, match="without a partner in imagesTr or labelsTr: 0003"):
        build(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"no names of classes: set data\.class_names"):
        build(tmp_path)


def test_nifti_without_nibabel_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.nii.gz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"need nibabel; `pip install nibabel`, or save \.npy"):
        build(tmp_path, class_names=["a", "b"], val_every=None)[0, 0]


def test_nifti_is_read_upright_and_resampled(tmp_path: Path) -> None:
    """Columns go from left to right whatever the file's axes; millimetres decide on the size."""
    nibabel = pytest.importorskip("nibabel")
    values = np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8)  # (x, y, z)
    mirrored = np.diag([-2.0, 1.0, 3.0, 1.0])
    for folder, content in (("imagesTr", values), ("labelsTr", (values > 90).astype(np.uint8))):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(content, mirrored), tmp_path / folder / "x.nii.gz")
    options: dict[str, Any] = {"class_names": ["a", "b"], "val_every": None, "window": [0, 191]}
    sample = build(tmp_path, "val", **options)[0, 0]
    expected = torch.from_numpy(values[::-1].T.astype(np.float32).copy()) / 191
    torch.testing.assert_close(sample["image"][0], expected)
    finer = build(tmp_path, "val", spacing=[1.5, 1.0, 1.0], **options)[0, 0]
    assert finer["image"].shape == (1, 16, 6, 8)
    assert finer["mask"].shape == (16, 6, 8)
    assert build(tmp_path, spacing=[1.5, 1.0, 1.0], **options)[0, 0]["image"].shape == (1, 6, 8, 8)
    (tmp_path / "imagesTr" / "x.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"x\.nii\.gz: damaged NIfTI file, or none"):
        build(tmp_path, "val", **options)[0, 0]

"""Videos with classes: folders, lists, frame ranges, views, and what is done about files that can't be read."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from vitdense.contracts import DATA, DataConfig, Samples, Split
from vitdense.data.audit import survey
from vitdense.data.loader import eval_loader, train_loader
from vitdense.errors import DataError

Make = Callable[..., Path]
NumberOf = Callable[[Any], int]
PLAIN: dict[str, Any] = {
    "frames": 4,
    "frame_stride": 2,
    "size": [48, 64],
    "augment": {"scale": [1.0, 1.0], "ratio": [1.3333, 1.3334], "flip_prob": 0.0},
    "batch_size": 2,
    "workers": 0,
}


def make(root: Path, **options: object) -> DataConfig:
    return DATA.create("clip_folder", {"root": str(root), **PLAIN, **options})


def build(root: Path, split: Split = "train", **options: object) -> Samples:
    return make(root, **options).build(split)


def shown(image: torch.Tensor, number_of: NumberOf) -> list[int]:
    """The numbers that the frames of (3, T, H, W) show."""
    return [number_of(frame) for frame in image.permute(1, 2, 3, 0)]


@pytest.fixture
def folders(tmp_path: Path, make_video: Make) -> Path:
    for name in ("train/run/a.mp4", "train/run/b.mkv", "train/sit/c.mp4", "val/sit/d.mp4", "val/run/e.mp4"):
        make_video(tmp_path / name, 20, options={"qp": "0"})
    return tmp_path


def test_folders_are_classes(folders: Path, number_of: NumberOf) -> None:
    train, val = build(folders), build(folders, "val")
    assert train.classes == val.classes == ("run", "sit")
    assert (len(train), len(val)) == (3, 2)
    sample = val[0, 1]
    assert (sample["id"], sample["label"]) == ("sit/d.mp4", 1)
    assert sample["image"].shape == (3, 4, 48, 64)
    assert shown(sample["image"], number_of) == [6, 8, 10, 12]
    drawn = shown(train[0, 0]["image"], number_of)
    assert [b - a for a, b in pairwise(drawn)] == [2, 2, 2]
    assert train.audit() == []
    told = survey(train).to_json()
    assert told["classes"] == {"run": 2, "sit": 1}
    assert told["sizes"] == {"48x64": 3}


def test_a_draw_depends_on_epoch_and_index(folders: Path, number_of: NumberOf) -> None:
    train = build(folders)
    assert torch.equal(train[3, 0]["image"], build(folders)[3, 0]["image"])
    assert len({tuple(shown(train[epoch, 0]["image"], number_of)) for epoch in range(8)}) > 3


def test_a_list_names_classes_and_frames(tmp_path: Path, make_video: Make, number_of: NumberOf) -> None:
    make_video(tmp_path / "clips" / "x.mp4", 30, options={"qp": "0"})
    rows = ["file,label,start_frame,end_frame", "clips/x.mp4,run,3,11", "clips/x.mp4,sit,20,", "clips/x.mp4,run,,"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    samples = build(tmp_path, "val", train="list.csv", val="list.csv")
    assert [samples[0, index]["label"] for index in range(3)] == [0, 1, 0]
    assert shown(samples[0, 0]["image"], number_of) == [3, 5, 7, 9]
    assert min(shown(samples[0, 1]["image"], number_of)) >= 20
    assert [samples[0, index]["id"] for index in range(3)] == ["clips/x.mp4#3-11", "clips/x.mp4#20-", "clips/x.mp4"]


def test_lines_with_numbers_and_a_file_of_names(tmp_path: Path, make_video: Make) -> None:
    make_video(tmp_path / "a b.mp4", 9)
    (tmp_path / "names.txt").write_text("run\nsit\nwave hands\n")
    (tmp_path / "train.txt").write_text("a b.mp4 2\na b.mp4,0\n\na b.mp4 7\nlonely.mp4\n")
    samples = build(tmp_path, train="train.txt", val="train.txt", class_names="names.txt")
    assert samples.classes == ("run", "sit", "wave hands")
    assert [samples[0, index]["label"] for index in range(2)] == [2, 0]
    faults = "\n".join(samples.audit())
    assert "train.txt:4: class '7' is none of the 3 that are named" in faults
    assert "train.txt:5: expected a path and a class" in faults


def test_views_and_crops_are_images_of_one_label(folders: Path) -> None:
    config = make(folders, views=2, crops=3, size=32, eval_batch_size=2)
    (batch,) = eval_loader(config.build("val"), config)
    assert batch["images"].shape == (2 * 2 * 3, 3, 4, 32, 32)
    assert batch["views"] == 6
    assert batch["labels"].tolist() == [0, 1]
    assert torch.equal(batch["images"][:6], config.build("val")[0, 0]["image"])


def test_frames_can_be_shuffled(folders: Path, number_of: NumberOf) -> None:
    order = shown(build(folders, "val", shuffle_frames=True)[0, 0]["image"], number_of)
    orders = {tuple(shown(build(folders, shuffle_frames=True)[epoch, 0]["image"], number_of)) for epoch in range(6)}
    assert sorted(order) == [6, 8, 10, 12]
    assert any(list(each) != sorted(each) for each in orders)


def test_a_rate_takes_frames_by_their_times(tmp_path: Path, make_video: Make, number_of: NumberOf) -> None:
    times = [0, 40, 80, 120, 160, 1000, 2000, 3000]
    make_video(tmp_path / "run" / "x.mkv", 8, times=times, options={"qp": "0"})
    sample = build(tmp_path, "val", fps=1, frame_stride=1)[0, 0]
    assert shown(sample["image"], number_of) == [0, 5, 6, 7]


def test_files_that_can_not_be_read_stop_or_are_left_out(folders: Path) -> None:
    (folders / "train" / "run" / "a.mp4").write_bytes(b"broken")
    config = make(folders)
    with pytest.raises(DataError, match=r"run/a\.mp4: damaged video"):
        list(train_loader(config.build("train"), config, seed=0, start_step=0, num_steps=3))
    assert "run/a.mp4" in "\n".join(config.build("train").audit())
    config = make(folders, on_bad_sample="skip", workers=1)
    batches = list(train_loader(config.build("train"), config, seed=0, start_step=0, num_steps=3))
    told = [reason for batch in batches for reason in batch["skipped"]]
    assert len(told) >= 2
    assert all("run/a.mp4" in reason for reason in told)


def test_what_is_missing_is_told_with_the_layout(tmp_path: Path, make_video: Make) -> None:
    with pytest.raises(DataError, match=r"needs data\.root"):
        DATA.create("clip_folder", {}).build("train")
    with pytest.raises(DataError, match=r"no such folder or list.*expected"):
        build(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no classes"):
        build(tmp_path / "empty")
    make_video(tmp_path / "train" / "run" / "x.mp4", 5)
    with pytest.raises(DataError, match="no folder of the split 'val'"):
        build(tmp_path, "val")
    make_video(tmp_path / "val" / "swim" / "x.mp4", 5)
    with pytest.raises(DataError, match="does not have: 'swim'"):
        build(tmp_path, "val")


def test_a_clip_that_starts_behind_the_end_is_told(tmp_path: Path, make_video: Make) -> None:
    make_video(tmp_path / "x.mp4", 9)
    (tmp_path / "list.csv").write_text("path,label,start_frame\nx.mp4,run,9\n")
    samples = build(tmp_path, train="list.csv", val="list.csv")
    with pytest.raises(DataError, match=r"x\.mp4: starts at frame 9 and has 9"):
        samples[0, 0]
    (tmp_path / "list.csv").write_text("path,label,start_frame,end_frame\nx.mp4,run,5,3\nx.mp4,run,0,4\n")
    faults = build(tmp_path, train="list.csv", val="list.csv").audit()
    assert "list.csv:2: expected frame numbers, the end behind the start, given start '5', end '3'" in faults[0]


def test_real_clips_of_signs(shared_data: Path) -> None:
    pytest.importorskip("av")
    options = {"train": "clips.csv", "val": "clips.csv", "sampling": "uniform", "size": 64}
    samples = build(shared_data / "video_asl", "val", **options)
    assert (len(samples), len(samples.classes)) == (20, 20)
    assert samples[0, 19]["image"].shape == (3, 4, 64, 64)
    assert samples.audit(limit=4) == []

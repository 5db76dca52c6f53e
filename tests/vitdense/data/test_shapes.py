"""The embedded data set: drawn from (seed, index) alone, labels that agree, motion that one frame doesn't show."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vitdense.contracts import DATA, Split
from vitdense.data.audit import Audit, survey
from vitdense.data.clips.moving import DIRECTIONS, render_clip
from vitdense.data.scenes import CLASSES, Scene, render
from vitdense.data.shapes import ShapeSamples, ShapesConfig


def build(split: Split = "train", **options: object) -> ShapeSamples:
    config = DATA.create("shapes", {"size": 48, "train_size": 10, "val_size": 5, **options})
    assert isinstance(config, ShapesConfig)
    return config.build(split)


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    before = render(1, 7, 64)
    np.random.default_rng(5).random(100)
    after = render(1, 7, 64)
    assert all(np.array_equal(getattr(before, name), getattr(after, name)) for name in Scene.__dataclass_fields__)


@pytest.mark.parametrize(("seed", "index", "stream"), [(2, 7, 0), (1, 8, 0), (1, 7, 1)])
def test_seed_index_and_stream_each_change_the_scene(seed: int, index: int, stream: int) -> None:
    assert not np.array_equal(render(1, 7, 64).image, render(seed, index, 64, stream=stream).image)


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (33, 33)])
def test_any_size_is_drawn(size: tuple[int, int]) -> None:
    scene = render(0, 0, size)
    assert scene.image.shape == (*size, 3)
    assert scene.semantic.shape == scene.depth.shape == size
    assert str(scene.depth.dtype) == str(scene.boxes.dtype) == "float32"


@pytest.mark.parametrize("index", range(8))
def test_all_labels_of_a_scene_agree(index: int) -> None:
    scene = render(0, index, 96)
    count = len(scene.labels)
    assert scene.instances.shape == (count, 96, 96)
    assert (scene.instances.sum(0) <= 1).all()
    assert np.array_equal(np.einsum("nhw,n->hw", scene.instances, scene.labels), scene.semantic)
    for mask, box in zip(scene.instances, scene.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("index", range(8))
def test_depth_agrees_with_who_covers_whom(index: int) -> None:
    scene = render(0, index, 96)
    depths = [float(scene.depth[mask].mean()) for mask in scene.instances]
    assert depths == sorted(depths)
    assert all(scene.depth[mask].std() < 1e-4 for mask in scene.instances)
    assert all(depth < scene.depth[scene.semantic == 0].min() for depth in depths)
    assert scene.depth.min() > 1.0
    assert scene.depth.max() <= 10.0


def test_captions_name_the_nearest_thing() -> None:
    for index in range(10):
        scene = render(0, index, 64)
        assert CLASSES[scene.labels[0]] in scene.caption.split(" of ")[0]


def test_every_class_fills_a_learnable_share() -> None:
    counts = [np.bincount(render(0, index, 64).semantic.ravel(), minlength=len(CLASSES)) for index in range(80)]
    shares = np.mean(counts, 0) / 64**2
    assert 0.6 < shares[0] < 0.9
    assert (shares[1:] > 0.015).all()


def test_colour_does_not_tell_objects_from_background() -> None:
    scenes = [render(0, index, 48) for index in range(60)]
    things = np.vstack([scene.image[scene.semantic > 0] for scene in scenes])
    hills = np.vstack([scene.image[scene.semantic == 0] for scene in scenes])
    assert (np.abs(things.mean(0) - hills.mean(0)) < 0.5 * hills.std(0)).all()


def test_samples_are_tensors_of_one_picture() -> None:
    sample = build()[0, 3]
    assert sample["image"].shape == (3, 48, 48)
    assert sample["image"].dtype == torch.uint8
    assert sample["mask"].shape == (48, 48)
    assert sample["mask"].dtype == torch.int16


def test_training_never_repeats_and_validation_always_does() -> None:
    train, val = build("train"), build("val")
    assert train[0, 3]["id"] == "train-3"
    assert train[1, 3]["id"] == "train-13"
    assert not torch.equal(train[0, 3]["image"], train[1, 3]["image"])
    assert torch.equal(val[0, 3]["image"], val[1, 3]["image"])


def test_the_splits_share_no_picture_whatever_their_sizes() -> None:
    assert not torch.equal(build("train")[0, 3]["image"], build("val")[0, 3]["image"])
    assert torch.equal(build("val")[0, 3]["image"], build("val", val_size=50, train_size=99)[0, 3]["image"])


def test_sizes_and_classes_are_told() -> None:
    assert len(build("train")) == 10
    assert len(build("val")) == 5
    assert build().classes == CLASSES
    assert len(build().palette) == len(CLASSES)
    assert build().audit() == []
    with pytest.raises(ValidationError):
        build(size=0)


def test_a_clip_depends_on_seed_and_index_alone() -> None:
    one, other = render_clip(0, 3, 48, 4), render_clip(0, 3, 48, 4)
    assert np.array_equal(one.frames, other.frames)
    assert one.frames.shape == (4, 48, 48, 3)
    assert one.semantic.shape == (4, 48, 48)


def test_clips_drift_in_the_direction_they_name() -> None:
    agree = 0
    for index in range(24):
        clip = render_clip(0, index, 64, 6)
        steps = []
        for before, after in pairwise(clip.semantic):
            scores = [np.mean(np.roll(before, move, (0, 1)) == after) for move in moves(5)]
            steps.append(int(np.argmax(scores)))
        agree += max(set(steps), key=steps.count) == clip.direction
    assert agree >= 20


def test_clips_set_out_in_the_direction_they_name_and_go_round() -> None:
    """Of eight frames the steps go in all eight directions, whichever comes first: without order they tell nothing."""
    agree = 0
    for index in range(12):
        clip = render_clip(0, index, 64, 8, course="round")
        for number, (before, after) in enumerate(pairwise(clip.semantic)):
            scores = [np.mean(np.roll(before, move, (0, 1)) == after) for move in moves(9)]
            agree += int(np.argmax(scores)) == (clip.direction + number) % len(DIRECTIONS)
    assert agree >= 0.8 * 12 * 7


def moves(pixels: int) -> list[tuple[int, int]]:
    """So many pixels in each of the directions, as rows and columns."""
    angles = np.arange(len(DIRECTIONS)) * np.pi / 4
    return [(round(pixels * np.sin(angle)), round(pixels * np.cos(angle))) for angle in angles]


def test_one_frame_does_not_show_the_direction() -> None:
    rows: dict[str, list[float]] = {"up": [], "down": []}
    for index in range(160):
        clip = render_clip(0, index, 32, 2)
        name = DIRECTIONS[clip.direction]
        if name in rows:
            rows[name].append(float(np.mean(np.nonzero(clip.semantic[-1])[0])) if clip.semantic[-1].any() else 15.5)
    assert all(len(found) >= 10 for found in rows.values())
    spread = np.std(rows["up"] + rows["down"])
    assert abs(np.mean(rows["up"]) - np.mean(rows["down"])) < 0.8 * spread


def test_shapes_with_depth_are_the_same_pictures_without_classes() -> None:
    plain = build("val")
    deep = DATA.create("shapes_depth", {"size": 48, "train_size": 10, "val_size": 5}).build("val")
    assert (deep.classes, deep.palette) == ((), ())
    for index in range(5):
        sample = deep[0, index]
        assert torch.equal(sample["image"], plain[0, index]["image"])
        assert sample["depth"].shape == (48, 48)
        assert sample["depth"].dtype == torch.float32
        assert 1 < sample["depth"].min() < sample["depth"].max() <= 10
        assert "mask" not in sample


def test_the_depth_of_a_thing_can_be_told_from_its_size() -> None:
    """Within what d1 forgives: a thing's depth times its radius hardly varies."""
    errors = []
    for index in range(40):
        scene = render(0, index, 96)
        for mask in scene.instances:
            rows, columns = np.nonzero(mask)
            side = max(rows.max() - rows.min(), columns.max() - columns.min()) + 1
            if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
                continue
            errors.append(np.log(scene.depth[mask].mean() * side / 96))
    assert len(errors) > 20
    assert np.std(errors) < np.log(1.25)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(["masks", "depth"], len(CLASSES)), (["depth"], 0), (["captions"], 0), (["masks"], len(CLASSES))],
)
def test_labels_of_some_tasks_are_surveyed(labels: list[str], classes: int) -> None:
    samples = DATA.create("shapes_tasks", {"size": 48, "labels": labels, "val_size": 3}).build("val")
    assert len(samples.classes) == classes
    found = survey(samples)
    assert isinstance(found, Audit)
    assert found.sizes == {(48, 48): 3}
    assert found.to_json()["ignored"] == (1.0 if labels == ["captions"] else 0.0)

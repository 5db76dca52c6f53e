"""The embedded volumes: labels that fit their voxels, no two draws alike."""

import numpy as np
import torch

from vitdense.contracts import DATA, Samples, Split
from vitdense.data.volumes.solids import CLASSES, render_volume


def build(split: Split = "val", **options: object) -> Samples:
    return DATA.create("shapes_volume", {"train_size": 8, "val_size": 4, **options}).build(split)


def test_a_volume_has_one_channel_and_a_class_for_each_voxel() -> None:
    sample = build(size=(20, 24, 28))[0, 1]
    assert sample["image"].shape == (1, 20, 24, 28)
    assert sample["image"].dtype == torch.uint8
    assert sample["mask"].shape == (20, 24, 28)
    assert sample["mask"].dtype == torch.int16


def test_training_draws_anew_and_validation_the_same() -> None:
    train = build("train")
    assert not torch.equal(train[0, 3]["image"], train[1, 3]["image"])
    assert torch.equal(train[1, 3]["image"], build("train")[1, 3]["image"])
    assert torch.equal(build()[0, 3]["image"], build()[1, 3]["image"])
    assert not torch.equal(train[0, 3]["image"], build()[0, 3]["image"])


def test_every_kind_comes_and_none_is_told_by_its_brightness() -> None:
    bright: dict[int, list[float]] = {kind: [] for kind in range(1, len(CLASSES))}
    for index in range(60):
        volume = render_volume(0, index, (24, 24, 24), noise=0.0)
        for kind, found in bright.items():
            inside = volume.semantic == kind
            if inside.any():
                found.append(float(volume.voxels[inside].mean()))
        assert volume.voxels[volume.semantic > 0].min(initial=255) > volume.voxels[volume.semantic == 0].max()
    means = [np.mean(found) for found in bright.values()]
    assert all(len(found) >= 10 for found in bright.values())
    assert max(means) - min(means) < np.mean([np.std(found) for found in bright.values()])


def test_a_ball_has_the_volume_of_a_ball() -> None:
    for index in range(200):
        volume = render_volume(1, index, (40, 40, 40), noise=0.0)
        places = np.argwhere(volume.semantic == CLASSES.index("ball"))
        if len(places) == 0:
            continue
        spans = places.max(0) - places.min(0) + 1
        if np.ptp(spans) > 1 or len(places) > np.prod(spans):
            continue
        expected = np.pi / 6 * float(np.prod(spans))
        assert abs(len(places) / expected - 1) < 0.12
        return
    raise AssertionError("no whole ball was drawn")

"""The embedded clips: what they give, what shuffling changes and what not."""

import torch

from vitdense.contracts import DATA, Samples, Split
from vitdense.data.clips.moving import DIRECTIONS
from vitdense.data.loader import eval_loader, train_loader
from vitdense.data.scenes import CLASSES

SMALL = {"size": [32, 40], "frames": 5, "train_size": 12, "val_size": 6, "workers": 0, "batch_size": 4}


def build(split: Split = "val", **options: object) -> Samples:
    return DATA.create("shapes_video", {**SMALL, **options}).build(split)


def test_a_clip_has_frames_and_a_direction() -> None:
    sample = build()[0, 2]
    assert sample["image"].shape == (3, 5, 32, 40)
    assert sample["image"].dtype == torch.uint8
    assert 0 <= sample["label"] < len(DIRECTIONS)
    assert "mask" not in sample
    assert build().classes == DIRECTIONS


def test_masks_are_of_the_same_clip() -> None:
    plain, dense = build()[0, 2], build(masks=True)[0, 2]
    assert torch.equal(plain["image"], dense["image"])
    assert dense["mask"].shape == (5, 32, 40)
    assert dense["mask"].dtype == torch.int16
    assert "label" not in dense
    assert build(masks=True).classes == CLASSES


def test_shuffled_frames_are_the_same_ones_in_another_order() -> None:
    moved = 0
    for index in range(4):
        plain, mixed = build()[0, index], build(shuffle_frames=True)[0, index]
        assert plain["label"] == mixed["label"]
        one, other = (sorted(map(bytes, each["image"].transpose(0, 1).numpy())) for each in (plain, mixed))
        assert one == other
        moved += not torch.equal(plain["image"], mixed["image"])
    assert moved >= 3
    dense, mixed = build(masks=True)[0, 1], build(masks=True, shuffle_frames=True)[0, 1]
    order = [
        next(i for i in range(5) if torch.equal(frame, dense["image"][:, i])) for frame in mixed["image"].unbind(1)
    ]
    assert torch.equal(mixed["mask"], dense["mask"][order])


def test_a_plain_backdrop_is_one_grey_with_the_same_directions_at_hand() -> None:
    sample, mask = build(backdrop="plain")[0, 2], build(backdrop="plain", masks=True)[0, 2]["mask"]
    rest = sample["image"][:, mask == 0].float()
    hills = build()[0, 2]["image"][:, build(masks=True)[0, 2]["mask"] == 0].float()
    assert rest.std(dim=1).mean() < 0.6 * hills.std(dim=1).mean()
    assert {build(backdrop="plain", val_size=60)[0, index]["label"] for index in range(60)} == set(range(8))


def test_training_draws_anew_and_validation_the_same() -> None:
    train = build("train")
    assert not torch.equal(train[0, 3]["image"], train[1, 3]["image"])
    assert torch.equal(train[1, 3]["image"], build("train")[1, 3]["image"])
    assert torch.equal(build()[0, 3]["image"], build()[1, 3]["image"])
    assert not torch.equal(train[0, 3]["image"], build()[0, 3]["image"])


def test_batches_of_clips() -> None:
    config = DATA.create("shapes_video", {**SMALL, "masks": True, "eval_batch_size": 4})
    batch = next(iter(train_loader(config.build("train"), config, seed=0, start_step=0, num_steps=1)))
    assert batch["images"].shape == (4, 3, 5, 32, 40)
    assert batch["masks"].shape == (4, 5, 32, 40)
    assert batch["sizes"] == [(32, 40)] * 4
    assert "views" not in batch
    assert [len(each["ids"]) for each in eval_loader(config.build("val"), config)] == [4, 2]

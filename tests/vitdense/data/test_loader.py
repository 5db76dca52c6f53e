"""Batches: the same with and without workers, and one policy for samples that can't be read."""

import multiprocessing
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitdense.contracts import DATA, Batch, DataConfig, Sample, Samples, Split
from vitdense.data import loader
from vitdense.data.folder import FolderConfig
from vitdense.data.loader import Batches, collate, eval_loader, train_loader
from vitdense.errors import DataError, UserError


class Numbers(Samples):
    """Samples whose pixels are their index; those in `bad` can't be read."""

    classes = ("a",)
    palette = ((0, 0, 0),)

    def __init__(self, length: int, bad: Iterable[int] = ()) -> None:
        self.length, self.bad = length, frozenset(bad)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        if key[1] in self.bad:
            raise DataError(f"{key[1]}.jpg: is bad")
        image = torch.full((3, 2, 2), key[1], dtype=torch.uint8)
        return Sample(id=str(key[1]), image=image, mask=torch.zeros(2, 2, dtype=torch.int16))

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        return []


def train(samples: Samples, *, start_step: int = 0, num_steps: int = 6, **options: object) -> list[Batch]:
    config = DataConfig.model_validate({"batch_size": 4, "workers": 0, **options})
    return list(train_loader(samples, config, seed=0, start_step=start_step, num_steps=num_steps))


def evaluate(samples: Samples, **options: object) -> list[Batch]:
    config = DataConfig.model_validate({"workers": 0, **options})
    return list(eval_loader(samples, config))


def ids(batches: Iterable[Batch]) -> list[list[str]]:
    return [batch["ids"] for batch in batches]


def equal(ours: list[Batch], theirs: list[Batch]) -> bool:
    return ids(ours) == ids(theirs) and all(
        torch.equal(one["images"], other["images"]) and torch.equal(one["masks"], other["masks"])
        for one, other in zip(ours, theirs, strict=True)
    )


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> FolderConfig:
    config = DATA.create("folder", {"root": str(make_folder()), "crop": 32, "batch_size": 4, "workers": 0})
    assert isinstance(config, FolderConfig)
    return config


def batches(config: FolderConfig, workers: int, split: Split = "train", **options: Any) -> Batches:
    with_workers = config.model_copy(update={"workers": workers})
    return train_loader(config.build(split), with_workers, **{"seed": 0, "start_step": 0, "num_steps": 6, **options})


def test_no_workers_and_two_workers_draw_the_same_batches(folder: FolderConfig) -> None:
    assert equal(list(batches(folder, 0)), list(batches(folder, 2)))


def test_closed_midway_batches_leave_no_worker(folder: FolderConfig) -> None:
    drawn = batches(folder, 2)
    left = iter(drawn)  # as a traceback holds it, to the end of its process
    next(left)
    assert len(multiprocessing.active_children()) == 2
    drawn.close()
    assert not multiprocessing.active_children()
    with pytest.raises(StopIteration):
        next(left)


def test_a_resume_draws_the_same_pixels(folder: FolderConfig) -> None:
    assert equal(list(batches(folder, 0))[4:], list(batches(folder, 0, start_step=4, num_steps=2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_draw_different_augmentations(folder: FolderConfig, workers: int) -> None:
    pictures: dict[str, list[torch.Tensor]] = {}
    for batch in batches(folder, workers, num_steps=3):
        for name, image in zip(batch["ids"], batch["images"], strict=True):
            pictures.setdefault(name, []).append(image)
    assert all(len(seen) == 2 and not torch.equal(seen[0], seen[1]) for seen in pictures.values())


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    train(Numbers(9))
    evaluate(Numbers(9))
    assert torch.equal(before, torch.get_rng_state())


def test_batches_carry_ids_images_masks_and_sizes() -> None:
    (batch,) = train(Numbers(4), num_steps=1)
    assert sorted(batch["ids"]) == ["0", "1", "2", "3"]
    assert batch["images"].shape == (4, 3, 2, 2)
    assert batch["masks"].shape == (4, 2, 2)
    assert batch["sizes"] == [(2, 2)] * 4
    assert batch["skipped"] == []


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_raises_the_fault_with_its_message_alone(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        train(Numbers(9, bad=[5]), workers=workers)
    assert str(caught.value) == "5.jpg: is bad"


def test_skip_takes_another_sample_and_tells_which_was_left_out() -> None:
    found = train(Numbers(9, bad=[5]), on_bad_sample="skip")
    assert all(len(batch["ids"]) == 4 and "5" not in batch["ids"] for batch in found)
    assert [reason for batch in found for reason in batch["skipped"]] == ["5.jpg: is bad"] * 3


def test_skip_is_the_same_with_workers_and_after_a_resume() -> None:
    whole = train(Numbers(9, bad=[5, 6]), on_bad_sample="skip")
    assert equal(whole, train(Numbers(9, bad=[5, 6]), on_bad_sample="skip", workers=2))
    assert equal(whole[3:], train(Numbers(9, bad=[5, 6]), on_bad_sample="skip", start_step=3, num_steps=3))


def test_skip_gives_up_when_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MAX_FAILURES", 7)
    with pytest.raises(DataError, match=r"7 samples in a row can't be read; the last: \d\.jpg: is bad"):
        train(Numbers(9, bad=range(9)), on_bad_sample="skip")


def test_evaluation_leaves_a_bad_sample_out_and_counts_no_other_twice() -> None:
    found = evaluate(Numbers(6, bad=[2, 5]), on_bad_sample="skip")
    assert ids(found) == [["0"], ["1"], ["3"], ["4"]]
    assert [reason for batch in found for reason in batch["skipped"]] == ["2.jpg: is bad", "5.jpg: is bad"]


def test_an_evaluation_without_any_readable_sample_stops() -> None:
    with pytest.raises(DataError, match=r"no sample can be read; the first: 0\.jpg: is bad"):
        evaluate(Numbers(3, bad=range(3)), on_bad_sample="skip")


def test_an_evaluation_can_be_repeated() -> None:
    batches = eval_loader(Numbers(5), DataConfig(workers=0, eval_batch_size=2))
    assert ids(batches) == ids(batches) == [["0", "1"], ["2", "3"], ["4"]]
    assert len(batches) == 3


def test_different_sizes_in_one_batch_are_a_users_mistake() -> None:
    samples = [Sample(id="a", image=torch.zeros(3, 4, size)) for size in (5, 6)]
    with pytest.raises(UserError, match=r"4x5, 4x6\); set data.eval_batch_size=1"):
        collate(samples)


def test_samples_can_be_sent_to_spawned_workers(folder: FolderConfig) -> None:
    samples = folder.build("train")
    copy = pickle.loads(pickle.dumps(samples))
    assert torch.equal(copy[2, 1]["image"], samples[2, 1]["image"])

"""Steps of like lengths: the same samples within a window, each once an epoch, and less padding on real captions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from vitdense import model as model_file
from vitdense.build import create_backbone
from vitdense.contracts import DATA, HEADS, Batch, ContrastiveHead
from vitdense.data.captions.lengths import PIECES, SortedSamples, step_cuts, windows
from vitdense.data.loader import train_loader
from vitdense.data.samplers import Key, StepSampler

from .conftest import write_pictures

WORDS = ("red", "small", "disc", "left", "of", "a", "green", "large", "square")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty-three pictures with one to three captions of one to forty words."""
    write_pictures(tmp_path / "images", 23)
    generator = np.random.default_rng(0)
    said = [
        {
            "image": f"p{number}.jpg",
            "captions": [
                " ".join(generator.choice(WORDS, size=generator.integers(1, 41)))
                for _ in range(generator.integers(1, 4))
            ],
        }
        for number in range(23)
    ]
    (tmp_path / "train.json").write_text(json.dumps(said))
    return tmp_path


def samples_of(folder: Path, window: int | None, batch_size: int = 4) -> SortedSamples:
    options = {"root": str(folder), "train": "train.json", "size": 8, "batch_size": batch_size, "sort_window": window}
    return cast(SortedSamples, DATA.create("captions", options).build("train"))


def stream(samples: SortedSamples, **options: Any) -> list[list[Key]]:
    given = {"batch_size": samples.batch_size, "seed": 3, "num_steps": 23, "order": samples.order, **options}
    return list(StepSampler(len(samples), **given))


def spread(samples: SortedSamples, steps: Sequence[Sequence[Key]]) -> float:
    """The mean difference of a step's longest and shortest caption, of the steps within one epoch."""
    inside = [keys for keys in steps if len({epoch for epoch, _ in keys}) == 1]
    lengths = [[samples.lengths(epoch)[index] for epoch, index in keys] for keys in inside]
    return float(np.mean([max(each) - min(each) for each in lengths]))


def test_lengths_are_those_of_the_captions_that_are_read(folder: Path) -> None:
    samples = samples_of(folder, 2)
    for epoch in (0, 1, 5):
        read = [len(PIECES.findall(samples[epoch, index]["captions"][0])) for index in range(len(samples))]
        assert samples.lengths(epoch).tolist() == read
    assert samples.lengths(0).tolist() != samples.lengths(1).tolist()


@pytest.mark.parametrize("window", [1, 2, 3, 100])
@pytest.mark.parametrize("batch_size", [4, 5, 30])
def test_an_epoch_visits_every_sample_once(folder: Path, window: int, batch_size: int) -> None:
    samples = samples_of(folder, window, batch_size)
    keys = [key for step in stream(samples) for key in step][: 3 * 23]
    assert sorted(keys) == [(epoch, index) for epoch in range(3) for index in range(23)]


def test_a_window_holds_the_samples_that_it_would_hold_unsorted(folder: Path) -> None:
    samples, loose = samples_of(folder, 3), samples_of(folder, None)
    assert loose.order(3, 0) is None
    ours, theirs = stream(samples, num_steps=24), stream(loose, num_steps=24)
    assert ours != theirs
    for first in range(0, 24, 3):
        together = [sorted(key for step in each[first : first + 3] for key in step) for each in (ours, theirs)]
        assert together[0] == together[1]
    assert spread(samples, ours) < 0.5 * spread(samples, theirs)


def test_which_step_of_a_window_has_the_shortest_is_drawn(folder: Path) -> None:
    samples = samples_of(folder, 3)
    steps = stream(samples, num_steps=60)
    shortest = []
    for first in range(0, 60, 3):
        if len({epoch for step in steps[first : first + 3] for epoch, _ in step}) == 1:
            means = [np.mean([samples.lengths(e)[i] for e, i in step]) for step in steps[first : first + 3]]
            shortest.append(int(np.argmin(means)))
    assert set(shortest) == {0, 1, 2}


@pytest.mark.parametrize("step", [1, 5, 7])
def test_a_resume_sees_the_same_steps(folder: Path, step: int) -> None:
    whole = stream(samples_of(folder, 3), accumulate=2)
    resumed = stream(samples_of(folder, 3), accumulate=2, start_step=step, num_steps=23 - step)
    assert resumed == whole[2 * step :]


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_processes_together_read_the_same_steps(folder: Path, world_size: int) -> None:
    single = stream(samples_of(folder, 3))
    ranks = [stream(samples_of(folder, 3), rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [[key for part in parts for key in part] for parts in zip(*ranks, strict=True)] == single


def test_cuts_are_where_the_stream_of_epochs_ends_a_step() -> None:
    assert step_cuts(10, 0, 4).tolist() == [0, 4, 8, 10]
    assert step_cuts(10, 1, 4).tolist() == [0, 2, 6, 10]
    assert step_cuts(10, 2, 4).tolist() == [0, 4, 8, 10]
    assert step_cuts(3, 1, 8).tolist() == [0, 3]
    assert [each.tolist() for each in windows(step_cuts(10, 1, 4), 2, 2)] == [[0, 2, 6], [6, 10]]
    assert [each.tolist() for each in windows(step_cuts(10, 0, 4), 0, 2)] == [[0, 4, 8], [8, 10]]


def test_real_captions_are_trimmed_to_fewer_tokens(shared_data: Path, tmp_path: Path) -> None:
    read = json.loads((shared_data / "flickr8k_captions" / "captions.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(read))
    samples, loose = (samples_of(tmp_path, window, 16) for window in (10, None))
    tokenizer = HEADS.create("clip", {"text": {"name": "clip_text_nano"}}).tokenizer()
    assert tokenizer is not None

    def mean_of_columns(each: SortedSamples) -> float:
        texts = [record["captions"] for record in read]
        drawn = [
            [texts[index][each.draw_caption(epoch, index, 5)[0]] for epoch, index in keys]
            for keys in stream(each, num_steps=50)
        ]
        return float(np.mean([tokenizer(step).shape[1] for step in drawn]))

    assert mean_of_columns(loose) > 22
    assert mean_of_columns(samples) < 17.5


def test_a_step_of_sorted_texts_has_the_loss_of_its_pairs_at_full_length(folder: Path) -> None:
    samples = samples_of(folder, 3)
    config = DATA.create("captions", {"root": str(folder), "train": "train.json", "batch_size": 4, "workers": 0})
    text = {"name": "clip_text_nano", "depth": 2}
    chosen = HEADS.create("clip", {"text": text, "dim": 16})
    torch.manual_seed(0)
    backbone = create_backbone("vit_nano_patch8", depth=1, image_size=8)
    model = model_file.Model(backbone, chosen.build_for(backbone))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    head = cast(ContrastiveHead, model.head)
    loader = train_loader(samples, config, seed=3, start_step=0, num_steps=3, tokenize=head.tokenizer)
    columns = []
    for batch in loader:
        columns.append(batch["tokens"].shape[1])
        full = torch.zeros(4, 77, dtype=torch.long)
        full[:, : columns[-1]] = batch["tokens"]
        losses = [model.head.losses(model(each), each) for each in (batch, cast(Batch, {**batch, "tokens": full}))]
        torch.testing.assert_close(losses[0]["loss_clip"], losses[1]["loss_clip"], rtol=1e-6, atol=1e-6)
    assert len(set(columns)) == 3

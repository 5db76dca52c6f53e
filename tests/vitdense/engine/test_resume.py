"""A run that was killed, at whatever moment, goes on to the very bits of a run that was not."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import set_start_method
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from vitdense import checkpoint
from vitdense.engine import evaluation, fit, training
from vitdense.errors import CheckpointError, UserError
from vitdense.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
Records = Callable[[Path], list[dict[str, Any]]]
Digests = Callable[[Path], dict[str, str]]


def _train(recipe: Recipe, resume: str | None, die: tuple[str, int] | None) -> None:
    """Train in a process of its own; `die` kills it with SIGKILL in a place, at the n-th time it comes by."""
    torch.set_num_threads(1)
    # As in a process of a user's: from this one's server, each worker would have to import everything again.
    set_start_method("fork", force=True)
    if die is not None:
        _kill_in(*die)
    fit(recipe, resume=resume)


def _kill_in(place: str, times: int) -> None:
    owner, name = {
        "accumulation": (training, "to_device"),
        "validation": (evaluation, "infer"),
        "saving": (checkpoint, "_put_in_place"),
        "step": (training, "set_rate"),
    }[place]
    original, seen = getattr(owner, name), [0]

    def counting(*arguments: object, **options: object) -> object:
        seen[0] += 1
        if seen[0] == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, counting)


def run(
    processes: ForkServerContext, recipe: Recipe, resume: str | None = None, die: tuple[str, int] | None = None
) -> int | None:
    process = processes.Process(target=_train, args=(recipe, resume, die))
    process.start()
    process.join(120)
    return process.exitcode


MOMENTS = {
    "at an epoch's middle": ("step", 5),
    "in the middle of an accumulation": ("accumulation", 8),
    "in validation": ("validation", 2),
    "while a checkpoint is put in place": ("saving", 6),
    "before the first checkpoint": ("step", 1),
}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_bit_for_bit(
    processes: ForkServerContext, make_recipe: MakeRecipe, tmp_path: Path, workers: int, digests: Digests
) -> None:
    assert run(processes, make_recipe("whole", f"data.workers={workers}")) == 0
    expected = digests(tmp_path / "whole")
    assert set(expected) == {checkpoint.WEIGHTS, checkpoint.AVERAGED, checkpoint.TRAIN_STATE, "samples.jsonl"}
    for number, moment in enumerate(MOMENTS):
        recipe = make_recipe(f"killed-{number}", f"data.workers={workers}")
        assert run(processes, recipe, die=MOMENTS[moment]) == -signal.SIGKILL
        assert run(processes, recipe, resume="auto") == 0
        assert digests(tmp_path / f"killed-{number}") == expected, moment


def test_kills_at_random_times_resume_bit_for_bit(
    processes: ForkServerContext, make_recipe: MakeRecipe, tmp_path: Path, digests: Digests
) -> None:
    assert run(processes, make_recipe("whole")) == 0
    recipe = make_recipe("killed")
    generator, kills = torch.Generator().manual_seed(1), 0
    for _ in range(5):
        process = processes.Process(target=_train, args=(recipe, "auto", None))
        process.start()
        process.join(0.5 + 1.5 * float(torch.rand((), generator=generator)))
        if process.exitcode is None:
            kills += 1
            process.kill()
        process.join()
    assert run(processes, recipe, resume="auto") == 0
    assert kills > 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_records_of_repeated_steps_stand_once(
    processes: ForkServerContext, make_recipe: MakeRecipe, tmp_path: Path, records: Records
) -> None:
    recipe = make_recipe("run", "engine.save_every=4")
    assert run(processes, recipe, die=("step", 7)) == -signal.SIGKILL
    assert run(processes, recipe, resume="auto") == 0
    steps = [record["step"] for record in records(tmp_path / "run") if record["split"] == "train"]
    assert steps == list(range(1, 10))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(
    processes: ForkServerContext, make_recipe: MakeRecipe, tmp_path: Path, number: signal.Signals
) -> None:
    recipe = make_recipe("run", "schedule.steps=2000", "engine.save_every=1000", "engine.eval_every=1000")
    process = processes.Process(target=_train, args=(recipe, None, None))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == 0
    found = checkpoint.open_checkpoint(tmp_path / "run")
    assert 0 < found.step < 2000
    assert found.facts["metrics"] == {}


def test_a_run_is_never_overwritten(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("run", "schedule.steps=1", "schedule.warmup=0", "engine.ema=null")
    fit(recipe)
    with pytest.raises(UserError, match="already holds a run: --resume auto goes on with it"):
        fit(recipe)


def test_a_resume_with_other_samples_is_refused(make_recipe: MakeRecipe) -> None:
    fit(make_recipe("run"), stop_after=1)
    with pytest.raises(UserError, match=r"made with engine\.seed 0 and data\.batch_size 8; given 3 and 8"):
        fit(make_recipe("run", "engine.seed=3"), resume="auto")


def test_a_checkpoint_of_another_model_is_refused_by_its_keys(make_recipe: MakeRecipe) -> None:
    fit(make_recipe("run"), stop_after=1)
    with pytest.raises(CheckpointError, match=r"doesn't fit this model: .*classifier\.weight is \(6, 8, 1, 1\)"):
        fit(make_recipe("run", "head.channels=16"), resume="auto")

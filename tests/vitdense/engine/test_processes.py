"""Two processes (gloo) train and count as one."""

import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from vitdense import checkpoint
from vitdense.engine import fit
from vitdense.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
Records = Callable[[Path], list[dict[str, Any]]]
Digests = Callable[[Path], dict[str, str]]

# Without batch norm and random layers, two processes differ from one by rounding alone.
PLAIN = (
    "engine.accumulate=1",
    "backbone.drop_path=0",
    "data.val_size=5",
)


def _train(rank: int, port: int, recipe: Recipe, stop_after: int | None, resume: str | None) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        LOCAL_WORLD_SIZE="2",
        WORLD_SIZE="2",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
    )
    fit(recipe, stop_after=stop_after, resume=resume)


def run_on_two(
    processes: ForkServerContext, recipe: Recipe, stop_after: int | None = None, resume: str | None = None
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [processes.Process(target=_train, args=(r, port, recipe, stop_after, resume)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(180)
    assert [process.exitcode for process in ranks] == [0, 0]


def test_two_processes_take_the_steps_of_one(
    processes: ForkServerContext, make_recipe: MakeRecipe, tmp_path: Path, records: Records
) -> None:
    plain = (*PLAIN, "head.use_levels=[0,1]")  # what only the other levels need gets no gradient
    run_on_two(processes, make_recipe("two", *plain, linear=True), stop_after=4)
    fit(make_recipe("one", *plain, linear=True), stop_after=4)
    one, two = (checkpoint.open_checkpoint(tmp_path / name).weights() for name in ("one", "two"))
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-5), name
    scores = [[record for record in records(tmp_path / name) if "mIoU" in record][-1] for name in ("one", "two")]
    assert scores[0]["aAcc"] == scores[1]["aAcc"]
    assert scores[0]["mIoU"] == scores[1]["mIoU"]


def test_two_processes_resume_bit_for_bit(
    processes: ForkServerContext, make_recipe: MakeRecipe, tmp_path: Path, digests: Digests
) -> None:
    run_on_two(processes, make_recipe("whole"))
    recipe = make_recipe("parts")
    run_on_two(processes, recipe, stop_after=5)
    run_on_two(processes, recipe, resume="auto")
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")

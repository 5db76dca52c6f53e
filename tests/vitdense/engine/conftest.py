"""A run small enough to be killed, resumed and compared many times; processes start from one warm server."""

import hashlib
import json
import re
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from vitdense import checkpoint
from vitdense.recipe import Recipe, load_recipe

TEXT = """
backbone: {name: swin_nano, depths: [1, 1, 1, 1], embed_dim: 8, num_heads: [1, 1, 2, 2], drop_path: 0.2}
head: {name: upernet, channels: 8, auxiliary_channels: 8, dropout: 0.1}
data: {name: shapes, size: 32, train_size: 20, val_size: 4, batch_size: 8, eval_batch_size: 2, workers: 0}
optim: {lr: 1e-3}
schedule: {steps: 9, warmup: 2}
engine: {accumulate: 2, ema: 0.9, clip: 1.0, log_every: 1, eval_every: 4, save_every: 1, keep: 3, pictures: 1,
         accelerator: cpu, precision: 32-true, log_samples: true}
"""

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make_recipe(tmp_path: Path) -> MakeRecipe:
    """A recipe that writes to tmp_path/NAME, with overrides; `linear` takes the head without batch norm."""

    def make(name: str = "run", *overrides: str, linear: bool = False) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(re.sub("head: .*", "head: {name: linear, norm: none, dropout: 0}", TEXT) if linear else TEXT)
        return load_recipe(path, [f"engine.run_dir={tmp_path / name}", *overrides])

    return make


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Processes that start with everything imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["vitdense.engine", "heads", "vitdense.checkpoint"])
    return context


@pytest.fixture
def digests() -> Callable[[Path], dict[str, str]]:
    """What `_digests` tells of a run's folder."""
    return _digests


@pytest.fixture
def records() -> Callable[[Path], list[dict[str, Any]]]:
    """What `_records` reads of a run's folder."""
    return _records


def _digests(run: Path) -> dict[str, str]:
    """SHA-256 of weights, averages and optimizer of the last checkpoint, and of the list of sample ids."""
    folder = checkpoint.open_checkpoint(run).folder
    names = [checkpoint.WEIGHTS, checkpoint.AVERAGED, checkpoint.TRAIN_STATE]
    files = [folder / name for name in names if (folder / name).exists()] + [run / "samples.jsonl"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

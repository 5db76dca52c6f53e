"""Atomic checkpoint folders: written aside, digested in a manifest, renamed into place."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitdense.errors import CheckpointError, SaveError

MANIFEST = "manifest.json"
Writer = Callable[[Path], None]
WEIGHTS, AVERAGED, TRAIN_STATE, RECIPE = "model.safetensors", "ema.safetensors", "train_state.pt", "recipe.yaml"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder and the facts its manifest holds: step, metrics, classes, palette."""

    folder: Path
    step: int
    facts: Mapping[str, Any]

    def weights(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """The model's tensors; `averaged` takes the moving average where the run kept one."""
        name = AVERAGED if averaged and (self.folder / AVERAGED).exists() else WEIGHTS
        return load_file(self.folder / name)

    def train_state(self) -> dict[str, Any]:
        """Optimizer, sampler and averaging state."""
        state: dict[str, Any] = torch.load(self.folder / TRAIN_STATE, map_location="cpu", weights_only=True)
        return state


def write_tensors(tensors: Mapping[str, Tensor]) -> Writer:
    """A writer of a safetensors file."""
    return lambda path: save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def write_state(state: Mapping[str, Any]) -> Writer:
    """A writer of a file that `torch.load(weights_only=True)` reads."""
    return lambda path: torch.save(dict(state), path)


def write_text(text: str) -> Writer:
    """A writer of a text file."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def save(run_dir: Path, step: int, writers: Mapping[str, Writer], facts: Mapping[str, Any]) -> Path:
    """Write `run_dir/step-N`; SaveError where that fails, and then what was there before stays as it was."""
    final, aside = run_dir / f"step-{step}", run_dir / f"step-{step}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        files = {}
        for name, write in writers.items():
            write(aside / name)
            _sync(aside / name)
            files[name] = {"size": (aside / name).stat().st_size, "sha256": _digest(aside / name)}
        manifest = {**facts, "step": step, "files": files}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync(aside / MANIFEST)
        _sync(aside)
        _put_in_place(aside, final)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save reports a full disk as a RuntimeError
        raise SaveError(f"could not write {final}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def _put_in_place(aside: Path, final: Path) -> None:
    """Rename; a folder of the same step, left by an earlier attempt, makes way first."""
    old = final.with_name(final.name + ".old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    aside.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep(run_dir: Path) -> None:
    """Remove what interrupted saves left aside."""
    for folder in run_dir.glob("step-*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


def prune(run_dir: Path, keep: int, metric: str | None) -> None:
    """Keep the newest `keep` checkpoints and the best one."""
    checkpoints = list(_complete(run_dir))
    best = _best(checkpoints, metric)
    for checkpoint in checkpoints[:-keep]:
        if checkpoint is not best:
            shutil.rmtree(checkpoint.folder, ignore_errors=True)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint by folder (`runs/x/step-100`) or role (`runs/x/best`, `runs/x/last`), every byte checked."""
    path = Path(path)
    if (path / MANIFEST).exists():
        checkpoint = _read(path)
    else:
        run_dir, role = (path.parent, path.name) if path.name in ("best", "last") else (path, "last")
        checkpoints = list(_complete(run_dir))
        found = _best(checkpoints, None) if role == "best" else None
        if not checkpoints:
            raise CheckpointError(
                f"no checkpoint at {path}: expected a folder step-N with a {MANIFEST}, or a run with such"
            )
        checkpoint = found or checkpoints[-1]
    verify(checkpoint)
    return checkpoint


def open_last(run_dir: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named through `warn` and passed over. None: a new run."""
    checkpoints = list(_complete(run_dir))
    for checkpoint in reversed(checkpoints):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            warn(f"{error}; trying the one before")
        else:
            return checkpoint
    if checkpoints:
        raise CheckpointError(f"every checkpoint in {run_dir} is damaged; nothing to resume from")
    return None


def verify(checkpoint: Checkpoint) -> None:
    """Compare sizes and SHA-256 with the manifest; raises CheckpointError naming the file."""
    for name, expected in checkpoint.facts["files"].items():
        path = checkpoint.folder / name
        if not path.exists():
            raise CheckpointError(f"damaged checkpoint: {path} is missing")
        size = path.stat().st_size
        if size != expected["size"]:
            raise CheckpointError(f"damaged checkpoint: {path} has {size} bytes, its manifest says {expected['size']}")
        if _digest(path) != expected["sha256"]:
            raise CheckpointError(f"damaged checkpoint: the content of {path} differs from its manifest (SHA-256)")


def _read(folder: Path) -> Checkpoint:
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Checkpoint(folder, int(facts["step"]), facts)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"damaged checkpoint: {folder / MANIFEST} can't be read ({error})") from error


def _complete(run_dir: Path) -> Iterator[Checkpoint]:
    """Checkpoints with a manifest, oldest first."""
    found = [path for path in run_dir.glob("step-*") if path.suffix != ".tmp" and (path / MANIFEST).exists()]
    for folder in sorted(found, key=lambda path: int(path.name.removeprefix("step-"))):
        yield _read(folder)


def _best(checkpoints: list[Checkpoint], metric: str | None) -> Checkpoint | None:
    """The highest first metric; the newest of equals."""
    scored = []
    for checkpoint in checkpoints:
        metrics = checkpoint.facts.get("metrics") or {}
        name = metric if metric is not None else next(iter(metrics), None)
        if name in metrics:
            scored.append((metrics[name], checkpoint.step, checkpoint))
    return max(scored, key=lambda entry: entry[:2])[2] if scored else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

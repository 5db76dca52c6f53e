"""Checkpoint folders: what survives kills, flipped bytes and full disks."""

import os
import resource
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from vitdense import checkpoint
from vitdense.errors import CheckpointError, SaveError


def writers(value: float, size: int = 1000) -> dict[str, checkpoint.Writer]:
    return {
        checkpoint.WEIGHTS: checkpoint.write_tensors({"weight": torch.full((size,), value)}),
        checkpoint.TRAIN_STATE: checkpoint.write_state({"step": int(value)}),
        checkpoint.RECIPE: checkpoint.write_text("name: test\n"),
    }


def save(run: Path, step: int, miou: float | None = None) -> Path:
    metrics = {} if miou is None else {"mIoU": miou}
    return checkpoint.save(run, step, writers(float(step)), {"metrics": metrics})


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    found = checkpoint.open_checkpoint(save(tmp_path, 3))
    assert found.step == 3
    assert torch.equal(found.weights()["weight"], torch.full((1000,), 3.0))
    assert found.train_state() == {"step": 3}


def test_last_and_best_are_computed(tmp_path: Path) -> None:
    for step, miou in ((1, 0.3), (2, 0.5), (3, 0.4), (4, None)):
        save(tmp_path, step, miou)
    assert checkpoint.open_checkpoint(tmp_path).step == 4
    assert checkpoint.open_checkpoint(tmp_path / "last").step == 4
    assert checkpoint.open_checkpoint(tmp_path / "best").step == 2


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step, miou in ((1, 0.3), (2, 0.5), (3, 0.4), (4, 0.1), (5, 0.2)):
        save(tmp_path, step, miou)
    checkpoint.prune(tmp_path, keep=2, metric="mIoU")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-4", "step-5"]


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.TRAIN_STATE, checkpoint.RECIPE])
def test_one_flipped_byte_is_found(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"the content of .*{name} differs from its manifest \(SHA-256\)"):
        checkpoint.open_checkpoint(tmp_path / "step-1")


def test_a_shortened_file_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="bytes, its manifest says"):
        checkpoint.open_checkpoint(tmp_path)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    (save(tmp_path, 1) / checkpoint.WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoint.open_checkpoint(tmp_path)


def test_a_manifest_that_is_no_json_is_found(tmp_path: Path) -> None:
    (save(tmp_path, 1) / checkpoint.MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json can't be read"):
        checkpoint.open_checkpoint(tmp_path / "step-1")


def test_resume_passes_over_a_damaged_checkpoint_and_says_so(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / checkpoint.WEIGHTS).write_bytes(b"")
    said: list[str] = []
    found = checkpoint.open_last(tmp_path, said.append)
    assert found is not None
    assert found.step == 1
    assert "step-2" in said[0]


def test_resume_never_starts_afresh_over_damaged_checkpoints(tmp_path: Path) -> None:
    (save(tmp_path, 1) / checkpoint.WEIGHTS).write_bytes(b"")
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        checkpoint.open_last(tmp_path, lambda message: None)


def test_an_empty_run_has_nothing_to_resume(tmp_path: Path) -> None:
    assert checkpoint.open_last(tmp_path, lambda message: None) is None
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.open_checkpoint(tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_aside(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match="No space left on device"):
        checkpoint.save(tmp_path, 2, {checkpoint.WEIGHTS: full}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert checkpoint.open_checkpoint(tmp_path).step == 1


def test_a_real_write_that_fails_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """The process may write 2,000 bytes a file: safetensors and torch.save meet the operating system's own error."""
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        for name in (checkpoint.WEIGHTS, checkpoint.TRAIN_STATE):
            state = {"weight": torch.zeros(10_000)}
            write = checkpoint.write_tensors if name == checkpoint.WEIGHTS else checkpoint.write_state
            with pytest.raises(SaveError, match="could not write"):
                checkpoint.save(tmp_path, 2, {name: write(state)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert checkpoint.open_checkpoint(tmp_path).step == 1


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1, 0.1)
    save(tmp_path, 1, 0.2)
    assert checkpoint.open_checkpoint(tmp_path).facts["metrics"] == {"mIoU": 0.2}
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def _save_forever(run: str, first: int) -> None:
    for step in range(first, first + 100_000):
        checkpoint.save(Path(run), step, writers(float(step), size=300_000), {"metrics": {}})
        checkpoint.prune(Path(run), keep=2, metric=None)


def test_fifty_kills_during_saving_leave_nothing_unreadable(tmp_path: Path) -> None:
    context = get_context("forkserver")
    context.set_forkserver_preload(["vitdense.checkpoint"])
    generator = torch.Generator().manual_seed(0)
    newest, killed = 0, 0
    while killed < 50:
        process = context.Process(target=_save_forever, args=(str(tmp_path), newest + 1))
        process.start()
        before = newest
        while newest == before and process.is_alive():  # at least one save per process, so that kills hit rotation too
            newest = max([int(p.name[5:]) for p in tmp_path.glob("step-*") if p.suffix != ".tmp"], default=before)
        time.sleep(0.03 * float(torch.rand((), generator=generator)))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
        found = checkpoint.open_last(tmp_path, lambda message: pytest.fail(message))
        assert found is not None
        assert found.step >= newest
        assert torch.equal(found.weights()["weight"], torch.full((300_000,), float(found.step)))
        newest = found.step
    checkpoint.sweep(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))

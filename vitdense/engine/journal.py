"""What a run leaves for people: progress on the terminal, metrics.jsonl, TensorBoard, pictures, the environment."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vitdense.contracts import Batch
from vitdense.data.loader import Batches

PACKAGES = (
    "vitdense",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "lightning",
    "albumentations",
    "numpy",
    "pillow",
)


class Journal:
    """Writes on the first process only; every other process holds a silent one (`active=False`)."""

    def __init__(self, run_dir: Path, *, start: int, total: int, active: bool = True) -> None:
        self.run_dir = run_dir
        self.active = active
        self.console = Console(stderr=True, quiet=not active, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not (active and sys.stderr.isatty()),
        )
        self.training = self.progress.add_task("train", total=total, completed=start, note="")
        self.board: Any = None
        if active:
            from torch.utils.tensorboard.writer import SummaryWriter

            run_dir.mkdir(parents=True, exist_ok=True)
            self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1 if start else None)
            self._rewind(start)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.board is not None:
            self.board.close()

    def say(self, message: str) -> None:
        """A line on the terminal, above the progress bar."""
        self.progress.console.print(message, markup=False, soft_wrap=True)

    def _rewind(self, step: int) -> None:
        """Drop records of steps that a resumed run will take again, and a torn last line."""
        for path in (self.run_dir / "metrics.jsonl", self.run_dir / "samples.jsonl"):
            if path.exists():
                kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
                path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def train(self, step: int, total: int, values: Mapping[str, float], seconds_left: float) -> None:
        """One record of training: loss terms, rate, speed."""
        self._record({"step": step, "split": "train", **values})
        terms = ", ".join(f"{name[5:]} {value:.4f}" for name, value in values.items() if name.startswith("loss_"))
        note = f"loss {values['loss']:.4f} ({terms})  {values['pictures_per_second']:.1f} pictures/s"
        self.progress.update(self.training, note=note)
        if not sys.stderr.isatty():
            self.say(f"step {step}/{total}  {note}  lr {values['lr']:.2e}  {_clock(seconds_left)} left")

    def advance(self, step: int) -> None:
        """Move the bar."""
        self.progress.update(self.training, completed=step)

    def evaluation(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """One record of evaluation."""
        self._record({"step": step, "split": "val", **metrics})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say(f"step {step}  validation: {shown}  ({_clock(seconds)})")

    def track(self, batches: Batches) -> Iterator[Batch]:
        """The batches of an evaluation, under a bar of their own."""
        task = self.progress.add_task("validate", total=len(batches), note="")
        for batch in batches:
            yield batch
            self.progress.advance(task)
        self.progress.remove_task(task)

    def samples(self, step: int, ids: list[list[Any]]) -> None:
        """The ids that a step was trained on, for whoever must compare two runs."""
        if self.active:
            _append(self.run_dir / "samples.jsonl", {"step": step, "ids": ids})

    def picture(self, step: int, image: Image.Image) -> None:
        """One sheet of input, truth and prediction: a file and a TensorBoard image."""
        if self.active:
            folder = self.run_dir / "samples"
            folder.mkdir(exist_ok=True)
            image.save(folder / f"step-{step}.png")
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            self.board.add_image("validation", pixels.view(image.height, image.width, 3), step, dataformats="HWC")

    def environment(self, arguments: Mapping[str, Any]) -> None:
        """What the run was made with."""
        if self.active:
            path = self.run_dir / "environment.json"
            path.write_text(json.dumps(environment() | dict(arguments), indent=1), encoding="utf-8")

    def _record(self, record: Mapping[str, Any]) -> None:
        if self.active:
            _append(self.run_dir / "metrics.jsonl", record)
            for name, value in record.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{record['split']}/{name}", value, record["step"])


def environment() -> dict[str, Any]:
    """Versions, processor, accelerator and the commit of the working folder."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit or None,
        "versions": versions,
    }


def _append(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""Rasters on the command line: options as key=value, and predictions with a progress bar."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitdense.data.rasters.opening import SUFFIXES
from vitdense.errors import DataError, UserError
from vitdense.model import Model
from vitdense.rasters.predicting import Done, PredictConfig, predict_raster
from vitdense.registry import Config, faults_of

C = TypeVar("C", bound=Config)

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def read_options(kind: type[C], given: Iterable[str], flag: str) -> C:
    """Options from key=value; UserError says which are bad."""
    options = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise UserError(f"{flag} {each}: expected key=value")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"{flag} {each}: the value can't be read") from None
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        told = "; ".join(f"{key}: {reason}" if key else reason for key, reason in faults_of(error, kind))
        raise UserError(f"{flag} {told}") from None


def find_rasters(paths: Sequence[Path]) -> dict[Path, str]:
    """Files as they are and the rasters in folders -> the names of their results."""
    files = [file for path in paths for file in (_inside(path) if path.is_dir() else [path])]
    found: dict[Path, str] = {}
    for file in files:
        if file.stem in found.values():
            raise UserError(f"{file}: another raster is called {file.stem} too; predict them apart")
        found[file] = file.stem
    return found


def predict_rasters(
    model: Model, paths: Sequence[Path], out: Path, given: Iterable[str], console: Console, *, skip_bad: bool = False
) -> tuple[list[Done], list[str]]:
    """What was written, and why rasters were passed over; a bad one stops unless `skip_bad`."""
    config = read_options(PredictConfig, given, "--raster")
    done: list[Done] = []
    skipped: list[str] = []
    with Progress(*COLUMNS, TimeRemainingColumn(), console=console) as bar:

        def track(path: Path, windows: int) -> Callable[[int], None]:
            task = bar.add_task(path.name, total=windows)
            return lambda count: bar.advance(task, count)

        for path, name in find_rasters(paths).items():
            try:
                done.append(predict_raster(model, path, out, config, name=name, track=track))
            except DataError as fault:
                if not skip_bad:
                    raise
                skipped.append(str(fault))
    return done, skipped


def _inside(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"no rasters in {folder}; looked for {', '.join(sorted(SUFFIXES))}")
    return found

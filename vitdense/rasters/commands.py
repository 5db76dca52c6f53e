"""Rasters on the command line: predictions with a progress bar, and what was written."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitdense import cli
from vitdense.data.rasters.opening import SUFFIXES
from vitdense.errors import DataError, UserError
from vitdense.model import Model
from vitdense.options import read_options
from vitdense.rasters.predicting import Done, PredictConfig, predict_raster

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def wanted(options: argparse.Namespace) -> bool:
    """Whether files are predicted as rasters: where --raster is given, and of .npy, which is no picture, always."""
    return options.raster is not None or any(path.suffix.lower() == ".npy" for path in options.pictures)


def predict(model: Model, options: argparse.Namespace, console: Console) -> int:
    """What tools/predict.py does with rasters: the exit code."""
    skip_bad = options.on_bad_picture == "skip"
    done, skipped = predict_rasters(
        model, options.pictures, options.out, options.raster or (), console, skip_bad=skip_bad
    )
    if options.json:
        results = [str(each.result) for each in done]
        print(cli.to_json({"written": len(done), "results": results, "skipped": skipped, "out": str(options.out)}))
        return cli.DONE
    for each in done:
        empty = f", {each.skipped} of them without pixels" if each.skipped else ""
        print(f"{each.result}: {each.windows} windows{empty}; overview: {each.overview}")
    print("".join(f"skipped: {reason}\n" for reason in skipped), end="")
    return cli.DONE


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

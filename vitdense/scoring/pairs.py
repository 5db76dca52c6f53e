"""Files of two folders that belong together, and how many threads read them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vitdense.data.images import SUFFIXES
from vitdense.errors import DataError, UserError

SHOWN = 5
"""How many names or faults a message lists before it only counts."""


@dataclass(frozen=True)
class Pairs:
    """Files that belong together, and the names in the truth that have no prediction."""

    files: tuple[tuple[Path, Path], ...]
    missing: tuple[str, ...]

    def warning(self) -> str | None:
        """What to tell where predictions are missing."""
        if not self.missing:
            return None
        count = f"{len(self.files)} of {len(self.files) + len(self.missing)}"
        return f"only {count} files have a prediction and are scored; missing: {listed(self.missing)}"


def pair_files(truth: Path, predictions: Path) -> Pairs:
    """Pair masks by relative path without suffix; a prediction without truth is an error, the opposite is listed."""
    wanted, given = (_named(folder, _pictures(folder), _without_suffix) for folder in (truth, predictions))
    return _matched(truth, predictions, wanted, given, ", ".join(sorted(SUFFIXES)))


def pair_depth(truth: Path, predictions: Path, truth_suffix: str = "", prediction_suffix: str = "") -> Pairs:
    """Pair depth maps by folder and name up to the first dot: `a/1.depth.png` belongs to `a/1.pred.png`.

    They are the files that end in the suffix given, which then is what the name lacks; without one, `*.depth.png`
    where there are such, else `*.png`.
    """
    wanted, given = (
        _named(folder, _depth_maps(folder, suffix), partial(_without, suffix) if suffix else _to_first_dot)
        for folder, suffix in ((truth, truth_suffix), (predictions, prediction_suffix))
    )
    return _matched(truth, predictions, wanted, given, prediction_suffix or ".png")


def counted(pairs: Pairs, count: Callable[[Path, Path], Tensor | DataError], threads: int | None) -> Iterable[Tensor]:
    """`count` of each pair in several threads, with a progress bar on stderr; all faults come as one DataError."""
    console = Console(stderr=True)
    faults: list[str] = []
    with _one_thread_each(), ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 16)) as pool:
        results = pool.map(lambda pair: count(*pair), pairs.files)
        for result in track(
            results, "scoring", len(pairs.files), console=console, transient=True, disable=not console.is_terminal
        ):
            if isinstance(result, DataError):
                faults.append(str(result))
            else:
                yield result
    if faults:
        more = f"\n... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataError("\n".join(faults[:SHOWN]) + more)


def listed(items: Sequence[object]) -> str:
    """The first few, and whether there are more."""
    return ", ".join(map(str, items[:SHOWN])) + (", ..." if len(items) > SHOWN else "")


def _matched(truth: Path, predictions: Path, wanted: dict[str, Path], given: dict[str, Path], looked: str) -> Pairs:
    strangers = sorted(given.keys() - wanted.keys())
    if strangers:
        raise UserError(
            f"{predictions} holds {len(strangers)} predictions without truth in {truth}: {listed(strangers)}"
        )
    if not given:
        raise UserError(f"{predictions} holds no predictions; looked for {looked}")
    files = tuple((wanted[name], given[name]) for name in sorted(given))
    return Pairs(files, tuple(sorted(wanted.keys() - given.keys())))


def _named(folder: Path, files: Iterable[Path], name_of: Callable[[Path], Path]) -> dict[str, Path]:
    """Name -> file; two files of one name are an error."""
    found: dict[str, Path] = {}
    for path in files:
        name = name_of(path.relative_to(folder)).as_posix()
        if name in found:
            raise UserError(f"{found[name]} and {path} have one name, {name!r}; only the suffix differs")
        found[name] = path
    return found


def _pictures(folder: Path) -> list[Path]:
    """Every picture below a folder, sorted."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    files = sorted(folder.rglob("*"))
    return [path for path in files if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]


def _depth_maps(folder: Path, suffix: str) -> list[Path]:
    files = [path for path in _pictures(folder) if path.name.endswith(suffix or ".png")]
    named = [path for path in files if path.name.endswith(".depth.png")]
    return files if suffix else named or files


def _without_suffix(path: Path) -> Path:
    return path.with_suffix("")


def _without(suffix: str, path: Path) -> Path:
    return path.with_name(path.name.removesuffix(suffix))


def _to_first_dot(path: Path) -> Path:
    return path.with_name(path.name.partition(".")[0])


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Torch's own threads off while files are counted side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

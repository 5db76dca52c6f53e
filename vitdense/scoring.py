"""Scores of anybody's predictions: two folders of masks, paired by relative path without the suffix."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from vitdense.contracts import IGNORE
from vitdense.data.images import SUFFIXES, read_mask
from vitdense.errors import DataError, UserError
from vitdense.metrics.segmentation import MeanIoU, count_pairs

SHOWN = 5
"""How many names or faults a message lists before it only counts."""


@dataclass(frozen=True)
class MaskCoding:
    """What the numbers in the files mean.

    ignore: values of the truth without a label, and of a prediction without an answer (wrong where the truth has one).
    reduce_zero: files where 0 is no label either and class k is stored as k + 1, as ADE20K's are.
    """

    num_classes: int
    ignore: tuple[int, ...] = ()
    reduce_zero: Literal["none", "truth", "both"] = "none"

    @classmethod
    def of(cls, num_classes: int, ignore: Sequence[int], reduce_zero: Literal["none", "truth", "both"]) -> "MaskCoding":
        """As asked for; where 0 is ignored it can't be a class, so the classes are stored as 1..N."""
        shifted = "both" if reduce_zero == "none" and 0 in ignore else reduce_zero
        return cls(num_classes, tuple(ignore), shifted)

    def truth(self, path: Path) -> Tensor:
        """A mask of the truth: (H, W) class indices, with IGNORE; DataError names a value that is none of these."""
        return self._decode(path, shifted=self.reduce_zero != "none")

    def prediction(self, path: Path) -> Tensor:
        """A predicted mask: (H, W) class indices, with IGNORE; DataError names a value that is none of these."""
        return self._decode(path, shifted=self.reduce_zero == "both")

    def _decode(self, path: Path, *, shifted: bool) -> Tensor:
        stored = read_mask(path).astype(np.int32)
        first, last = int(shifted), self.num_classes - 1 + int(shifted)
        ignored = np.isin(stored, (*self.ignore, 0) if shifted else self.ignore)
        self._check(path, stored[~ignored], first, last)
        return torch.from_numpy(np.where(ignored, IGNORE, stored - first))

    def _check(self, path: Path, values: NDArray[np.int32], first: int, last: int) -> None:
        if values.size and not first <= values.min() <= values.max() <= last:
            outside = np.unique(values[(values < first) | (values > last)])
            ignored = f" and {', '.join(map(str, self.ignore))} (ignored)" if self.ignore else ""
            raise DataError(f"{path} holds {_listed(outside.tolist())}; allowed are {first}..{last}{ignored}")


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
        return f"only {count} masks have a prediction and are scored; missing: {_listed(self.missing)}"


def pair_files(truth: Path, predictions: Path) -> Pairs:
    """Pair the masks of two folders; a prediction without truth is an error, truth without prediction is listed."""
    wanted, given = _masks(truth), _masks(predictions)
    strangers = sorted(given.keys() - wanted.keys())
    if strangers:
        raise UserError(
            f"{predictions} holds {len(strangers)} predictions without truth in {truth}: {_listed(strangers)}"
        )
    if not given:
        raise UserError(f"{predictions} holds no predictions; looked for {', '.join(sorted(SUFFIXES))}")
    files = tuple((wanted[name], given[name]) for name in sorted(given))
    return Pairs(files, tuple(sorted(wanted.keys() - given.keys())))


def score_masks(
    pairs: Pairs, coding: MaskCoding, *, average: Literal["present", "all"] | None = None, threads: int | None = None
) -> MeanIoU:
    """Count all pairs, in several threads, with a progress bar on stderr; faults of all files come as one DataError.

    Classes are named by the numbers that the truth stores. Left out, `average` is "all" where 0 is no label, as in
    ADE20K's devkit, and "present" elsewhere.
    """
    if coding.num_classes < 1:
        raise UserError(f"there must be a class or more, given {coding.num_classes}")
    first = int(coding.reduce_zero != "none")
    names = tuple(str(first + index) for index in range(coding.num_classes))
    metric = MeanIoU(names, average=average or ("all" if first else "present"))
    console = Console(stderr=True)
    faults: list[str] = []
    with _one_thread_each(), ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 16)) as pool:
        results = pool.map(lambda pair: _count(pair[0], pair[1], coding), pairs.files)
        for result in track(
            results, "scoring", len(pairs.files), console=console, transient=True, disable=not console.is_terminal
        ):
            if isinstance(result, DataError):
                faults.append(str(result))
            else:
                metric.counts += result
    if faults:
        more = f"\n... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataError("\n".join(faults[:SHOWN]) + more)
    if metric.counts.sum() == 0:
        raise DataError(f"not one pixel of {len(pairs.files)} masks has a label; are the ignored values right?")
    return metric


def as_table(metric: MeanIoU) -> Table:
    """One row for each class that occurs, in percent."""
    details = metric.details()
    rows = [row for row in zip(*details.values(), strict=True) if not math.isnan(row[1])]
    absent = len(metric.classes) - len(rows)
    table = Table("class", caption=f"{absent} absent classes are not shown" if absent else None)
    for name in ("IoU", "Acc", "pixels"):
        table.add_column(name, justify="right")
    for name, iou, accuracy, pixels in rows:
        table.add_row(name, f"{iou:.2%}", "-" if math.isnan(accuracy) else f"{accuracy:.2%}", f"{pixels:,}")
    return table


def as_dict(metric: MeanIoU, pairs: Pairs) -> dict[str, Any]:
    """Summary, which classes its means are over, number of images, and columns by class, NaN where one is absent."""
    counts = {"average": metric.average, "images": len(pairs.files), "missing": len(pairs.missing)}
    return {**metric.compute(), **counts, **metric.details()}


def _count(truth_path: Path, prediction_path: Path, coding: MaskCoding) -> Tensor | DataError:
    try:
        truth, prediction = coding.truth(truth_path), coding.prediction(prediction_path)
    except DataError as fault:
        return fault
    if truth.shape != prediction.shape:
        sizes = f"{prediction_path} is {tuple(prediction.shape)}, {truth_path} is {tuple(truth.shape)} (H, W)"
        return DataError(sizes)
    return count_pairs(truth, prediction, coding.num_classes)


def _masks(folder: Path) -> dict[str, Path]:
    """Relative path without suffix -> file, for every picture below a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise UserError(f"{found[name]} and {path} have one name; only the suffix differs")
            found[name] = path
    return found


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Torch's own threads off while files are counted side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:SHOWN])) + (", ..." if len(items) > SHOWN else "")

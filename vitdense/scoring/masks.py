"""Scores of masks in files: what their numbers mean, mIoU over all of them, and how it is shown."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from vitdense.contracts import IGNORE
from vitdense.data.images import read_mask
from vitdense.errors import DataError, UserError
from vitdense.metrics.overlap import BoundaryIoU, Dice, Overlap
from vitdense.metrics.segmentation import MeanIoU, count_pairs
from vitdense.scoring.pairs import Pairs, counted, listed


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

    def names(self) -> tuple[str, ...]:
        """Classes are named by the numbers that the truth stores."""
        if self.num_classes < 1:
            raise UserError(f"there must be a class or more, given {self.num_classes}")
        first = int(self.reduce_zero != "none")
        return tuple(str(first + index) for index in range(self.num_classes))

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
            raise DataError(f"{path} holds {listed(outside.tolist())}; allowed are {first}..{last}{ignored}")


def overlaps_of(coding: MaskCoding, *, dice: bool, boundary: bool) -> list[Overlap]:
    """The further metrics that are asked for."""
    wanted: list[tuple[bool, type[Overlap]]] = [(dice, Dice), (boundary, BoundaryIoU)]
    return [kind(coding.names()) for asked, kind in wanted if asked]


def score_masks(
    pairs: Pairs,
    coding: MaskCoding,
    *,
    average: Literal["present", "all"] | None = None,
    overlaps: Sequence[Overlap] = (),
    threads: int | None = None,
) -> MeanIoU:
    """Count all pairs, in several threads, with a progress bar on stderr; faults of all files come as one DataError.

    Left out, `average` is "all" where 0 is no label, as in ADE20K's devkit, and "present" elsewhere. `overlaps` are
    counted along, see `overlaps_of`.
    """
    metric = MeanIoU(coding.names(), average=average or ("present" if coding.reduce_zero == "none" else "all"))
    totals = [metric.counts, *(each.counts for each in overlaps)]
    ends = list(itertools.accumulate(total.numel() for total in totals[:-1]))
    for counts in counted(pairs, lambda truth, prediction: _count(truth, prediction, coding, overlaps), threads):
        parts = counts.tensor_split(ends)
        for total, part in zip(totals, parts, strict=True):
            total += part.view_as(total)
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


def summary(metric: MeanIoU, overlaps: Sequence[Overlap] = ()) -> dict[str, float]:
    """The means of all metrics."""
    return metric.compute() | {name: value for each in overlaps for name, value in each.compute().items()}


def as_dict(metric: MeanIoU, pairs: Pairs, overlaps: Sequence[Overlap] = ()) -> dict[str, Any]:
    """Summary, which classes its means are over, number of images, and columns by class, NaN where one is absent."""
    counts = {"average": metric.average, "images": len(pairs.files), "missing": len(pairs.missing)}
    columns = {name: column for each in overlaps for name, column in each.details().items()}
    return {**summary(metric, overlaps), **counts, **metric.details(), **columns}


def _count(
    truth_path: Path, prediction_path: Path, coding: MaskCoding, overlaps: Sequence[Overlap]
) -> Tensor | DataError:
    """The counts of all metrics, one after the other, flat."""
    try:
        truth, prediction = coding.truth(truth_path), coding.prediction(prediction_path)
    except DataError as fault:
        return fault
    if truth.shape != prediction.shape:
        sizes = f"{prediction_path} is {tuple(prediction.shape)}, {truth_path} is {tuple(truth.shape)} (H, W)"
        return DataError(sizes)
    parts = [count_pairs(truth, prediction, coding.num_classes)]
    return torch.cat([part.flatten() for part in (*parts, *(each.count(truth, prediction) for each in overlaps))])

"""Scores of depth maps in 16-bit files."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitdense.data.images import read_depth
from vitdense.errors import DataError
from vitdense.metrics.depth import DepthError, DepthErrorConfig
from vitdense.scoring.pairs import Pairs, counted


def score_depth(pairs: Pairs, config: DepthErrorConfig, *, scale: float, threads: int | None = None) -> DepthError:
    """Errors of all pairs, whose files hold `scale` units a metre; faults of all files come as one DataError."""
    metric = config.build()
    for share in counted(pairs, lambda truth, prediction: _count(metric, truth, prediction, scale), threads):
        metric.add(share)
    if metric.pictures == 0:
        raise DataError(f"not one pixel of {len(pairs.files)} depth maps counts; are the range and the scale right?")
    return metric


def as_dict(metric: DepthError, pairs: Pairs) -> dict[str, Any]:
    """The means, number of pictures that they are over, of files, and of truth without a prediction."""
    counts = {"pictures": metric.pictures, "images": len(pairs.files), "missing": len(pairs.missing)}
    return {**metric.compute(), **counts, "align": metric.config.align}


def _count(metric: DepthError, truth_path: Path, prediction_path: Path, scale: float) -> Tensor | DataError:
    try:
        truth, prediction = (torch.from_numpy(read_depth(path, scale)) for path in (truth_path, prediction_path))
    except DataError as fault:
        return fault
    if truth.shape != prediction.shape:
        sizes = f"{prediction_path} is {tuple(prediction.shape)}, {truth_path} is {tuple(truth.shape)} (H, W)"
        return DataError(sizes)
    return metric.measure(prediction, truth)

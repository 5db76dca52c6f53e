"""Scores of objects that are followed through videos: folders of masks in DAVIS's layout."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from vitdense.data.images import read_mask
from vitdense.errors import DataError, UserError
from vitdense.metrics.video_objects import Floats, Statistics, score_objects, statistics, summarise
from vitdense.scoring.pairs import Pairs, counted, listed

VOID = 255
"""Pixels of the truth with this value are background, as in DAVIS's own evaluation."""


@dataclass(frozen=True)
class Followed:
    """A video: its objects, which are values of the masks, the frames that count, and `scores` (2, K, T), J and F."""

    name: str
    objects: tuple[int, ...]
    frames: tuple[str, ...]
    scores: Floats


@dataclass(frozen=True)
class Scored:
    """All sequences that were scored, and what to tell where the truth has more."""

    sequences: tuple[Followed, ...]
    warning: str | None = None

    def curves(self) -> list[tuple[str, int, Floats]]:
        """Sequence, object, and its J and F over time (2, T)."""
        return [
            (each.name, value, each.scores[:, index])
            for each in self.sequences
            for index, value in enumerate(each.objects)
        ]


@dataclass(frozen=True)
class _Folders:
    """Where the masks of a sequence are, its frames that count, and the objects that its first true mask has."""

    name: str
    truth: Path
    predictions: Path
    frames: tuple[str, ...]
    objects: tuple[int, ...]


def read_names(path: Path) -> list[str]:
    """The lines of a list of sequences, such as DAVIS's ImageSets/2017/val.txt; DataError without any."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{path}: no list of sequences ({fault})") from None
    if not names:
        raise DataError(f"{path}: no names of sequences in it")
    return names


def score_sequences(
    truth: Path, predictions: Path, names: Sequence[str] | None = None, *, threads: int | None = None
) -> Scored:
    """J and F of every object in every frame but the first, which was given, and the last, as DAVIS has it.

    Sequences are the folders below `predictions`, or `names`; or the two folders are one sequence, and hold its masks.
    Faults of all files come as one DataError.
    """
    found, warning = _find(truth, predictions, names)
    pairs = {
        (each.truth / f"{frame}.png", each.predictions / f"{frame}.png"): each
        for each in found
        for frame in each.frames
    }

    def count(true_file: Path, found_file: Path) -> Tensor | DataError:
        try:
            return torch.from_numpy(_measure(pairs[true_file, found_file], true_file, found_file))
        except DataError as fault:
            return fault

    shares = iter(list(counted(Pairs(tuple(pairs), ()), count, threads)))
    sequences = []
    for each in found:
        scores = np.stack([next(shares).numpy() for _ in each.frames], axis=-1)  # (2, K, T)
        sequences.append(Followed(each.name, each.objects, each.frames, scores))
    return Scored(tuple(sequences), warning)


def as_dict(scored: Scored, *, per_object: bool) -> dict[str, Any]:
    """The means over objects, how much there was, and columns by object where asked."""
    curves = scored.curves()
    counts = {
        "sequences": len(scored.sequences),
        "objects": len(curves),
        "frames": sum(len(each.frames) for each in scored.sequences),
    }
    rows = [{"sequence": name, "object": value, **_row(scores)} for name, value, scores in curves]
    columns = {key: [row[key] for row in rows] for key in rows[0]} if per_object else {}
    return {**summarise([scores for *_, scores in curves]), **counts, **({"per_object": columns} if columns else {})}


def as_line(scored: Scored) -> str:
    """The means over objects."""
    means = summarise([scores for *_, scores in scored.curves()])
    return "  ".join(f"{name} {value:.4f}" for name, value in means.items())


def as_table(scored: Scored) -> Table:
    """One row for each object, in percent."""
    curves = scored.curves()
    table = Table("sequence", "object")
    for name in _row(curves[0][2]):
        table.add_column(name, justify="right")
    for name, value, scores in curves:
        table.add_row(name, str(value), *(f"{each:.2%}" for each in _row(scores).values()))
    return table


def write_csv(scored: Scored, path: Path) -> None:
    """A row for each object and frame: sequence, object, frame, J, F."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", "object", "frame", "J", "F"])
        for each in scored.sequences:
            for value, scores in zip(each.objects, each.scores.transpose(1, 2, 0).tolist(), strict=True):
                writer.writerows(
                    [each.name, value, frame, *pair] for frame, pair in zip(each.frames, scores, strict=True)
                )


def _row(scores: Floats) -> dict[str, float]:
    found = {name: statistics(values) for name, values in zip("JF", scores, strict=True)}
    return {f"{name}-{what.capitalize()}": getattr(found[name], what) for name in "JF" for what in Statistics._fields}


def _find(truth: Path, predictions: Path, names: Sequence[str] | None) -> tuple[list[_Folders], str | None]:
    for folder in (truth, predictions):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
    if names is None and _masks(truth):
        return [_open(truth.name, truth, predictions)], None
    known = sorted(folder.name for folder in truth.iterdir() if folder.is_dir() and _masks(folder))
    given = sorted(folder.name for folder in predictions.iterdir() if folder.is_dir() and _masks(folder))
    wanted = given if names is None else list(names)
    for missing, where in ((set(wanted) - set(known), truth), (set(wanted) - set(given), predictions)):
        if missing:
            raise DataError(f"{where} lacks {len(missing)} of {len(wanted)} sequences: {listed(sorted(missing))}")
    if not wanted:
        raise UserError(f"{predictions} holds no predictions; looked for folders of PNGs, one for each sequence")
    left = sorted(set(known) - set(wanted)) if names is None else []
    warning = (
        f"only {len(wanted)} of {len(known)} sequences have predictions and are scored; missing: {listed(left)}"
        if left
        else None
    )
    return [_open(name, truth / name, predictions / name) for name in wanted], warning


def _open(name: str, truth: Path, predictions: Path) -> _Folders:
    frames = sorted(path.stem for path in _masks(truth))
    if len(frames) < 3:
        raise DataError(f"{truth} has {len(frames)} masks; the first and the last don't count, so that it needs 3")
    objects = np.setdiff1d(read_mask(truth / f"{frames[0]}.png"), (0, VOID))
    if not objects.size:
        raise DataError(f"{truth / frames[0]}.png: the first mask of the truth has no objects")
    inner = tuple(frames[1:-1])
    missing = sorted(set(inner) - {path.stem for path in _masks(predictions)})
    if missing:
        raise DataError(f"{predictions} lacks {len(missing)} of {len(inner)} masks: {listed(missing)}")
    return _Folders(name, truth, predictions, inner, tuple(objects.tolist()))


def _measure(folders: _Folders, true_file: Path, found_file: Path) -> NDArray[np.float64]:
    truth, found = read_mask(true_file), read_mask(found_file)
    if truth.shape != found.shape:
        raise DataError(f"{found_file} is {found.shape}, {true_file} is {truth.shape} (H, W)")
    strange = np.setdiff1d(found, (0, *folders.objects))
    if strange.size:
        has = listed(folders.objects)
        raise DataError(f"{found_file} holds the objects {listed(strange.tolist())}; the first true mask has {has}")
    return score_objects(truth, found, folders.objects)


def _masks(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.png") if not path.name.startswith(".")] if folder.is_dir() else []

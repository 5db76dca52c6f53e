"""Scores of boxes and masks in COCO's JSON: the official numbers, by class, and how they are shown."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from vitdense.metrics.coco.curves import Curves, evaluate
from vitdense.metrics.coco.things import FoundThings
from vitdense.scoring.coco_files import Kind, Truth, read_results, read_truth


@dataclass(frozen=True)
class Scored:
    """Curves of results, and what they were made from."""

    truth: Truth
    found: FoundThings
    curves: Curves
    warnings: list[str]


def score_things(truth_path: Path, results_path: Path, kind: Kind) -> Scored:
    """Evaluate results on every picture of the truth, in float64; DataError says what is wrong with a file."""
    truth = read_truth(truth_path, kind)
    results = read_results(results_path, truth, kind)
    curves = evaluate(truth.things, results.things, num_pictures=len(truth.pictures), num_classes=len(truth.categories))
    return Scored(truth, results.things, curves, truth.warnings + results.warnings)


def as_dict(scored: Scored, *, per_class: bool) -> dict[str, Any]:
    """AP, AP50, ... in 0..1 and -1 where nothing is there to be found; numbers of images and detections; and columns
    by class, NaN where one is absent."""
    counts = {"images": len(scored.truth.pictures), "detections": len(scored.found)}
    columns = {"classes": list(scored.truth.names), "category_ids": list(scored.truth.categories)}
    classes = {"per_class": {**columns, **scored.curves.by_class()}} if per_class else {}
    return {**scored.curves.stats(), **counts, **classes}


def as_table(scored: Scored) -> Table:
    """One row for each class of the truth that occurs, in percent."""
    columns = scored.curves.by_class()
    table = Table("class")
    for name in columns:
        table.add_column(name, justify="right")
    rows = zip(scored.truth.names, *columns.values(), strict=True)
    shown = [row for row in rows if not math.isnan(row[1])]
    for name, *values in shown:
        table.add_row(name, *(f"{value:.2%}" for value in values))
    absent = len(scored.truth.names) - len(shown)
    table.caption = f"{absent} absent classes are not shown" if absent else None
    return table


def as_line(scored: Scored) -> str:
    """The summary; a dash where nothing of the kind is there to be found."""
    stats = scored.curves.stats()
    return "  ".join(f"{name} {'-' if value < 0 else f'{value:.4f}'}" for name, value in stats.items())

"""Pictures of a COCO evaluation: precision over recall, of all classes and of each, and the confusion matrix."""

from pathlib import Path

import numpy as np
from PIL import Image

from vitdense.metrics.coco.curves import Curves
from vitdense.metrics.coco.things import Ints
from vitdense.metrics.confusion import confusion
from vitdense.pictures import Panel, chart_sheet, confusion_matrix, make_palette
from vitdense.pictures.sheets import INK
from vitdense.scoring.coco import Scored

PANELS = 24
"""Classes that a sheet holds."""
MOST_CLASSES = 100
"""A confusion matrix shows so many classes, those with the most true things."""
LINES = ("IoU 0.5", "IoU 0.75", "mean of 0.5 to 0.95")


def write_plots(scored: Scored, folder: Path, *, least_score: float) -> list[Path]:
    """Write folder/precision_recall.png, precision_recall_by_class_01.png and so on, and confusion.png."""
    folder.mkdir(parents=True, exist_ok=True)
    panels = [_panel(scored, index) for index in _present(scored.curves).tolist()]
    legend = list(zip(LINES, (*make_palette(2), INK), strict=True))
    axes = ("recall", "precision")
    pictures = {
        "precision_recall": chart_sheet(
            [_overall(scored)], legend, title="Precision and recall", axes=axes, plot=(480, 360)
        )
    }
    for number, start in enumerate(range(0, len(panels), PANELS), start=1):
        title = f"Precision and recall by class, {number} of {-(-len(panels) // PANELS)}"
        sheet = chart_sheet(panels[start : start + PANELS], legend, title=title, axes=axes)
        pictures[f"precision_recall_by_class_{number:02d}"] = sheet
    pictures["confusion"] = _confusion(scored, least_score)
    paths = []
    for name, picture in pictures.items():
        paths.append(folder / f"{name}.png")
        picture.save(paths[-1], optimize=True)
    return paths


def _present(curves: Curves) -> Ints:
    """Classes that the truth holds."""
    return np.flatnonzero(curves.recall[0, :, 0, -1] >= 0)


def _panel(scored: Scored, label: int) -> Panel:
    precision = scored.curves.precision[:, :, label, 0, -1]  # (T, R)
    return Panel(scored.truth.names[label], f"AP {precision.mean():.3f}", [*precision[[0, 5]], precision.mean(axis=0)])


def _overall(scored: Scored) -> Panel:
    present = _present(scored.curves)
    note = f"AP {scored.curves.stats()['AP']:.3f}" if present.size else "nothing to be found"
    precision = scored.curves.precision[:, :, present, 0, -1]  # (T, R, K)
    mean = precision.mean(axis=2) if present.size else np.zeros(precision.shape[:2])
    return Panel(f"mean of {present.size} classes", note, [*mean[[0, 5]], mean.mean(axis=0)])


def _confusion(scored: Scored, least_score: float) -> Image.Image:
    names, size = scored.truth.names, len(scored.truth.names)
    counts = confusion(scored.truth.things, scored.found, num_classes=size, least_score=least_score)
    both = counts.sum(axis=0) + counts.sum(axis=1)
    often = np.argsort(-counts.sum(axis=1)[:size], kind="stable")[:MOST_CLASSES]
    shown = np.sort(often[both[often] > 0])
    title = f"Confusion at IoU 0.5 and scores from {least_score:g}"
    if (both[:size] > 0).sum() > len(shown):
        title += f", the {len(shown)} most frequent classes"
    chosen = np.append(shown, size)
    return confusion_matrix(counts[np.ix_(chosen, chosen)], [names[index] for index in shown.tolist()], title=title)

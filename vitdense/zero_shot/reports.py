"""What zero-shot classification found, for people: tables, predictions.csv and a page with pictures."""

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from vitdense.data.images import read_image
from vitdense.metrics.accuracy import RANKS
from vitdense.pictures import Panel, chart_sheet, confusion_matrix
from vitdense.zero_shot.classification import BINS, Score, TemplateScore

THUMBNAIL, SHOWN = 168, 24
MISTAKES, DRAWN = 20, 40
"""The commonest mistakes that are listed, and the most classes that are drawn."""
PREDICTIONS, REPORT = "predictions.csv", "report.html"
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;color:#1f2328;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #e2e4e8}
td:first-child,th:first-child{text-align:left}.sheet{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;width:168px}figcaption{font-size:13px;color:#656d76;overflow-wrap:anywhere}
img{max-width:100%;border-radius:4px}"""


@dataclass(frozen=True)
class Findings:
    """Pictures by file with their true classes (N,), logits (N, K) and the score; `templates` where each was scored."""

    title: str
    files: Sequence[Path]
    labels: Tensor
    logits: Tensor
    names: tuple[str, ...]
    score: Score
    templates: Sequence[TemplateScore] = ()

    def certainties(self) -> tuple[list[int], list[float]]:
        """The predicted class of each picture, and its probability."""
        sure, predicted = self.logits.double().softmax(dim=1).max(dim=1)
        return predicted.tolist(), sure.tolist()


Rows = list[tuple[str, ...]]
"""A table, its head first."""


def class_rows(findings: Findings) -> Rows:
    """Each class that has pictures."""
    columns = findings.score.by_class
    names = ("classes", "pictures", *(f"top{k}" for k in RANKS))
    rows: Rows = [("class", "pictures", *(f"top-{k}" for k in RANKS))]
    for name, count, *right in zip(*(columns[key] for key in names), strict=True):
        if count:
            rows.append((str(name), str(count), *(f"{value:.1%}" for value in right)))
    return rows


def template_rows(templates: Sequence[TemplateScore]) -> Rows:
    """Each template alone, and all together."""
    rows: Rows = [("template", *(f"top-{k}" for k in RANKS))]
    return rows + [(each.template, f"{each.top1:.1%}", f"{each.top5:.1%}") for each in templates]


def as_line(findings: Findings) -> str:
    """The means."""
    return "  ".join(f"{name} {value:.2%}" for name, value in findings.score.results.items())


def print_findings(findings: Findings, more: Mapping[str, float], console: Console) -> None:
    """Tables by class and by template, the means, and `more` numbers."""
    console.print(_console_table(class_rows(findings)))
    if findings.templates:
        console.print(_console_table(template_rows(findings.templates)))
    console.print(as_line(findings))
    for name, value in more.items():
        console.print(f"{name} {value:.4g}")


def _console_table(rows: Rows) -> Table:
    # Brackets in names are no markup.
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def as_dict(findings: Findings) -> dict[str, object]:
    """For JSON."""
    templates = [{"template": each.template, "top1": each.top1, "top5": each.top5} for each in findings.templates]
    return {
        **findings.score.results,
        "pictures": len(findings.files),
        "per_class": findings.score.by_class,
        **({"templates": templates} if templates else {}),
    }


def write_predictions(findings: Findings, folder: Path) -> None:
    """predictions.csv: path, true, predicted, probability."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PREDICTIONS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "true", "predicted", "probability"))
        rows = zip(findings.files, findings.labels.tolist(), *findings.certainties(), strict=True)
        for path, true, predicted, sure in rows:
            writer.writerow((path.as_posix(), findings.names[true], findings.names[predicted], f"{sure:.6f}"))


def write_report(findings: Findings, folder: Path) -> None:
    """report.html: the means, the classes, what was taken for what, and the surest hits and misses as pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name, count in zip(findings.names, findings.score.by_class["pictures"], strict=True) if count]
    parts = [
        f"<h1>{html.escape(findings.title)}</h1><p>{len(findings.files)} pictures of {len(names)} classes, "
        f"{len(findings.names)} to choose from: {as_line(findings)}</p>",
        "<h2>Classes</h2>",
        _html_table(class_rows(findings)),
        "<h2>What was taken for what</h2>",
        _html_table(confused_rows(findings)),
        _picture(confusion_picture(findings)),
        "<h2>Calibration</h2>",
        _picture(reliability_picture(findings.score)),
    ]
    if findings.templates:
        parts += ["<h2>Templates</h2>", _html_table(template_rows(findings.templates))]
    predicted, sure = findings.certainties()
    right = [guess == true for guess, true in zip(predicted, findings.labels.tolist(), strict=True)]
    order = sorted(range(len(sure)), key=lambda index: -sure[index])
    for title, wanted in (("Surest misses", False), ("Surest hits", True)):
        chosen = [index for index in order if right[index] is wanted][:SHOWN]
        figures = "".join(_figure(findings, index, predicted[index], sure[index]) for index in chosen)
        parts.append(f'<h2>{title}</h2><div class="sheet">{figures or "none"}</div>')
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(findings.title)}</title><style>{_STYLE}</style>"
    (folder / REPORT).write_text(page + "\n".join(parts), encoding="utf-8")


def confused_rows(findings: Findings) -> Rows:
    """The commonest mistakes."""
    counts = findings.score.confusion.clone().fill_diagonal_(0)
    most, places = counts.flatten().topk(min(MISTAKES, counts.numel()))
    rows: Rows = [("class", "taken for", "pictures")]
    for count, place in zip(most.tolist(), places.tolist(), strict=True):
        if count:
            true, predicted = divmod(place, len(counts))
            rows.append((findings.names[true], findings.names[predicted], str(count)))
    return rows


def confusion_picture(findings: Findings) -> Image.Image:
    """Of the classes that have pictures, of many those with the most misses; what was taken for any other class stands
    apart."""
    counts = findings.score.confusion.numpy()
    present = np.flatnonzero(counts.sum(axis=1))
    misses = counts.sum(axis=1) - counts.diagonal()
    kept = np.sort(present[np.argsort(-misses[present], kind="stable")[:DRAWN]])
    inside = counts[np.ix_(kept, kept)]
    others = counts[kept].sum(axis=1) - inside.sum(axis=1)
    square = np.zeros((len(kept) + 1, len(kept) + 1), np.int64)
    square[:-1, :-1], square[:-1, -1] = inside, others
    names = [findings.names[index] for index in kept]
    title = "All classes" if len(kept) == len(present) else f"The {len(kept)} classes with the most misses"
    return confusion_matrix(square, names, title=title, background="any other")


def reliability_picture(score: Score) -> Image.Image:
    """How often predictions of a confidence are right, in steps, 0 where there are none, and how many there are."""
    along = np.linspace(0, 1, 20 * BINS + 1)
    places = np.minimum((along * BINS).astype(np.int64), BINS - 1)
    right = np.nan_to_num(score.accuracy.numpy())[places]
    share = (score.pictures / score.pictures.sum()).numpy()[places]
    panel = Panel("reliability", f"ECE {score.results['ece']:.1%}", (along, share, right))
    legend = (("as sure as right", (168, 173, 180)), ("share of pictures", (214, 122, 44)), ("right", (11, 61, 122)))
    return chart_sheet([panel], legend, title="Calibration", axes=("probability", "share"), plot=(420, 280))


def _figure(findings: Findings, index: int, predicted: int, sure: float) -> str:
    """One picture with its path, its class and what it was taken for."""
    image = Image.fromarray(read_image(findings.files[index]))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    true = findings.names[int(findings.labels[index])]
    told = f"{true}, taken for {findings.names[predicted]} ({sure:.0%})" if true != findings.names[predicted] else true
    note = html.escape(f"{told} ({sure:.0%})" if told == true else told)
    name = html.escape(findings.files[index].name)
    return f'<figure>{_picture(image, "JPEG")}<figcaption title="{name}">{note}</figcaption></figure>'


def _picture(image: Image.Image, kind: str = "PNG") -> str:
    """A picture within the page, so that the page travels alone."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/{kind.lower()};base64,{data}">'


def _html_table(rows: Rows) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><tr>{head}</tr>{body}</table>"

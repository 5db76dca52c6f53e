"""Pictures and tables of a report with many classes, absent ones, and nothing that is right."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vitdense.zero_shot.classification import score
from vitdense.zero_shot.reports import (
    DRAWN,
    Findings,
    class_rows,
    confused_rows,
    confusion_picture,
    reliability_picture,
    write_report,
)


def findings(logits: Tensor, labels: Tensor, files: list[Path] | None = None) -> Findings:
    names = tuple(f"class {number}" for number in range(logits.shape[1]))
    given = files or [Path("x.png")] * len(labels)
    return Findings("title", given, labels, logits, names, score(logits, labels, names))


def test_of_many_classes_those_with_the_most_misses_are_drawn() -> None:
    labels = torch.arange(300).repeat_interleave(2)
    few = findings(F.one_hot(labels, 300).float(), labels)
    assert confusion_picture(few).width < 18 * (DRAWN + 20)
    assert len(class_rows(few)) == 301
    assert confused_rows(few) == [("class", "taken for", "pictures")]  # nothing was


def test_the_commonest_mistakes_come_first() -> None:
    labels, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([1, 1, 0, 2, 1, 2])
    found = findings(F.one_hot(predicted, 4).float(), labels)
    assert confused_rows(found)[1:] == [("class 0", "class 1", "2"), ("class 1", "class 2", "1")]
    assert [row[:3] for row in class_rows(found)[1:]] == [
        ("class 0", "3", "33.3%"),
        ("class 1", "2", "50.0%"),
        ("class 2", "1", "100.0%"),
    ]


def test_the_reliability_diagram_has_a_step_for_each_part() -> None:
    """All pictures are sure by 0.6 to 0.667 and half of them right: blue stands at a half there, and at 0 elsewhere."""
    chance = torch.tensor([0.64, 0.36]).log()
    image = np.asarray(reliability_picture(findings(chance.repeat(10, 1), torch.arange(10) % 2).score), int)
    blue = (np.abs(image - (11, 61, 122)).sum(2) < 40)[80:]  # below the legend
    rows, columns = np.nonzero(blue)
    high, low = rows.min(), rows.max()
    top = columns[rows == high]
    assert abs((low - high) / 280 - 0.5) < 0.05
    assert abs((top.max() - top.min()) / 420 - 1 / 15) < 0.02


def test_a_report_without_a_hit_says_so(tmp_path: Path) -> None:
    Image.new("RGBA", (900, 300)).save(tmp_path / "x.png")
    found = findings(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), [tmp_path / "x.png"])
    write_report(found, tmp_path / "deep" / "out")
    page = (tmp_path / "deep" / "out" / "report.html").read_text(encoding="utf-8")
    assert '<h2>Surest hits</h2><div class="sheet">none</div>' in page
    assert "class 0, taken for class 1 (73%)" in page

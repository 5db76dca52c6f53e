"""Charts and matrices: colours where the numbers say, sizes that fit, and mistakes named."""

import numpy as np
import pytest

from vitdense.errors import UserError
from vitdense.pictures import Panel, chart_sheet, confusion_matrix

RED, BLUE = (220, 40, 40), (40, 40, 220)


def test_a_curve_is_where_its_numbers_are() -> None:
    panel = Panel("title", "", [np.full(5, 1.0), np.full(5, 0.0)])
    sheet = chart_sheet([panel], [("a", RED), ("b", BLUE)], title="", axes=("x", "y"), plot=(200, 100))
    pixels = np.asarray(sheet).astype(int)[80:]  # below the legend, which has the same colours
    rows = {}
    for colour in (RED, BLUE):
        found, columns = np.nonzero(np.abs(pixels - np.array(colour)).sum(axis=-1) < 60)
        assert np.ptp(columns) > 180
        assert np.ptp(found) < 10
        rows[colour] = found.mean()
    assert rows[BLUE] - rows[RED] == pytest.approx(92, abs=3)  # the plot without its edges


def test_panels_stand_in_rows() -> None:
    panels = [Panel(f"a very long title that has to be cut {index}", "AP 0.1", [[0, 1]]) for index in range(5)]
    one, five = (chart_sheet(panels[:number], [("a", RED)], title="t", axes=("x", "y"), columns=4) for number in (4, 5))
    assert one.width == five.width
    assert five.height > 1.5 * one.height
    with pytest.raises(UserError, match="a panel or more"):
        chart_sheet([], [("a", RED)], title="t", axes=("x", "y"))


@pytest.mark.parametrize("classes", [0, 3, 20, 40])
def test_a_cell_is_darker_the_larger_its_share_of_the_row(classes: int) -> None:
    counts = np.eye(classes + 1, dtype=np.int64) * 10
    counts[0, -1] += 10
    picture = confusion_matrix(counts, [f"class {index}" for index in range(classes)], title="title")
    colours = np.asarray(picture).reshape(-1, 3)
    full, half = ((colours == colour).all(axis=1).sum() for colour in ((11, 61, 122), (86, 148, 205)))
    assert full > 100  # a column of the scale below has fewer
    assert (half > 100) == (classes > 0)
    with pytest.raises(UserError, match=rf"for {classes} classes and the background"):
        confusion_matrix(np.zeros((99, 99)), [f"class {index}" for index in range(classes)], title="title")

"""Outlines: run lengths decode as pycocotools decodes them, and move with their view."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from vitdense.data.boxes.segments import Polygons, Runs, decode_counts, parse_segment
from vitdense.data.boxes.views import View


@pytest.mark.parametrize("seed", range(12))
def test_compressed_runs_are_those_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 90)), int(rng.integers(1, 90)))
    mask = (rng.random(size) < (0.02, 0.5, 0.97)[seed % 3]).astype(np.uint8)
    mask[: size[0] // 2] = seed % 2
    encoded = coco_mask.encode(np.asfortranarray(mask))
    segment = parse_segment({"size": list(size), "counts": encoded["counts"].decode()}, size)
    assert np.array_equal(segment.mask(size), mask)
    assert isinstance(segment, Runs)
    again = parse_segment({"size": list(size), "counts": segment.counts.tolist()}, size)
    assert np.array_equal(again.mask(size), mask)


def test_long_runs_take_several_characters() -> None:
    mask = np.zeros((3000, 2000), np.uint8)
    mask[17:, 1200:] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    assert int(decode_counts(encoded["counts"].decode()).sum()) == mask.size
    segment = parse_segment({"size": [3000, 2000], "counts": encoded["counts"].decode()}, (3000, 2000))
    assert np.array_equal(segment.mask((3000, 2000)), mask)


@pytest.mark.parametrize("text", ["", "\x01", "é", "`", "oooooooo0", "PPY1`"])
def test_damaged_runs_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="damaged"):
        decode_counts(text)


@pytest.mark.parametrize("flip", [False, True])
def test_polygons_and_runs_of_one_thing_move_alike(flip: bool) -> None:
    polygon = Polygons((np.array([[10.0, 8.0], [50.0, 8.0], [50.0, 32.0], [10.0, 32.0]]),))
    counts = coco_mask.encode(np.asfortranarray(polygon.mask((40, 60))))["counts"].decode()
    runs = parse_segment({"size": [40, 60], "counts": counts}, (40, 60))
    view = View((5, 3, 35, 43), (60, 80), (7, 9), flip)
    assert polygon.view(view).shape == (60, 80)
    one, other = polygon.view(view), runs.view(view)
    assert abs(int(one.sum()) - 48 * 66) <= 48 + 66
    assert (one != other).mean() < 0.04
    (moved,) = view.boxes(np.array([[10.0, 8.0, 50.0, 32.0]]))
    for mask in (one, other):
        ys, xs = np.nonzero(mask)
        left, top, right, bottom = moved - [9, 7, 9, 7]
        assert abs(xs.min() - max(left, 0)) <= 2
        assert abs(xs.max() + 1 - min(right, 80)) <= 2
        assert abs(ys.min() - top) <= 2
        assert abs(ys.max() + 1 - bottom) <= 2


def test_several_parts_are_one_thing() -> None:
    parts = [[0, 0, 10, 0, 10, 10, 0, 10], [20, 20, 30, 20, 30, 30, 20, 30]]
    mask = parse_segment(parts, (40, 40)).mask((40, 40))
    assert mask[5, 5] == mask[25, 25] == 1
    assert mask[15, 15] == 0

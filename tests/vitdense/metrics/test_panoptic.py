"""Panoptic quality, on cases worked by hand."""

import math

import numpy as np
import pytest

from vitdense.metrics.panoptic import PanopticQuality, Segment

THING, OTHER, STUFF = 0, 1, 2
Map = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def row(*runs: tuple[int, int]) -> Map:
    """A map of one row: ids, each for so many pixels."""
    return np.concatenate([np.full(pixels, number, np.int64) for number, pixels in runs])[None]


def quality() -> PanopticQuality:
    return PanopticQuality([True, True, False])


def test_matched_missed_and_made_up_segments() -> None:
    truth, found = row((10, 8), (20, 4), (30, 8)), row((1, 6), (2, 6), (3, 8))
    true = {10: Segment(THING), 20: Segment(THING), 30: Segment(STUFF)}
    metric = quality()
    metric.add(metric.measure(truth, true, found, {1: Segment(THING), 2: Segment(THING), 3: Segment(STUFF)}))
    # 10 and 1: 6 of 8; 20 and 2: 4 of 6; 30 and 3: all
    assert metric.sums.tolist() == [[6 / 8 + 4 / 6, 0, 1], [2, 0, 1], [0, 0, 0], [0, 0, 0]]
    results = metric.compute()
    assert results["PQ_th"] == pytest.approx((6 / 8 + 4 / 6) / 2)
    assert results["PQ"] == pytest.approx((results["PQ_th"] + 1) / 2)
    assert results["RQ"] == 1
    columns = metric.by_class()
    assert math.isnan(columns["PQ"][OTHER])

    metric.add(metric.measure(truth, true, found, {1: Segment(OTHER), 2: Segment(THING), 3: Segment(STUFF)}))
    assert metric.sums[1:].tolist() == [[3, 0, 2], [0, 1, 0], [1, 0, 0]]
    assert metric.compute()["RQ_th"] == pytest.approx((3 / 3.5 + 0) / 2)


def test_half_the_union_is_no_match() -> None:
    metric = quality()
    share = metric.measure(
        row((10, 4), (20, 4)), {10: Segment(THING), 20: Segment(STUFF)}, row((1, 8)), {1: Segment(0)}
    )
    assert share.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1]]


def test_unlabelled_pixels_are_left_out_of_the_overlap() -> None:
    metric = quality()
    share = metric.measure(row((10, 4), (0, 6)), {10: Segment(THING)}, row((1, 8), (0, 2)), {1: Segment(THING)})
    assert share[0, THING] == 1


@pytest.mark.parametrize(("nowhere", "made_up"), [(5, 1), (6, 0)])
def test_what_lies_on_unlabelled_pixels_or_a_crowd_by_more_than_half_counts_for_nothing(
    nowhere: int, made_up: int
) -> None:
    metric = quality()
    truth = row((0, 3), (40, nowhere - 3), (50, 10 - nowhere))
    true = {40: Segment(THING, crowd=True), 50: Segment(STUFF)}
    share = metric.measure(truth, true, row((1, 10)), {1: Segment(THING)})
    assert share[1:].tolist() == [[0, 0, 0], [made_up, 0, 0], [0, 0, 1]]
    other = metric.measure(truth, true, row((1, 10)), {1: Segment(OTHER)})
    assert other[2, OTHER] == 1  # the crowd is of another class


def test_nothing_at_all_is_not_a_number() -> None:
    assert all(math.isnan(value) for value in quality().compute().values())

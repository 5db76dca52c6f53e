"""J and F of DAVIS: hand-worked cases, and boundaries matched pixel by pixel."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from vitdense.metrics.video_objects import (
    boundary,
    contour_accuracy,
    region_similarity,
    score_objects,
    statistics,
    summarise,
)


def square(top: int, left: int, side: int = 4, size: tuple[int, int] = (20, 30)) -> Any:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def brute_boundary(mask: Any) -> list[tuple[int, int]]:
    height, width = mask.shape
    found = []
    for row, column in product(range(height), range(width)):
        ahead = [(row, column + 1), (row + 1, column), (row + 1, column + 1)]
        others = [mask[r, c] for r, c in ahead if r < height and c < width]
        if any(other != mask[row, column] for other in others):
            found.append((row, column))
    return found


def brute_contour_accuracy(truth: Any, found: Any, tolerance: float) -> float:
    radius = np.ceil(tolerance * np.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    edges = [brute_boundary(mask) for mask in (truth, found)]
    if not edges[0] or not edges[1]:
        return float(edges[0] == edges[1])
    shares = []
    for one, other in ((edges[0], edges[1]), (edges[1], edges[0])):
        near = [any((a - c) ** 2 + (b - d) ** 2 <= radius**2 for c, d in other) for a, b in one]
        shares.append(sum(near) / len(near))
    return 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0


def test_region_similarity_by_hand() -> None:
    assert region_similarity(square(2, 2), square(2, 2)) == 1
    assert region_similarity(square(2, 2), square(2, 4)) == 8 / 24
    assert region_similarity(square(2, 2), square(10, 10)) == 0
    assert region_similarity(square(2, 2), square(2, 2, 0)) == 0
    assert region_similarity(square(0, 0, 0), square(0, 0, 0)) == 1


def test_a_boundary_by_hand() -> None:
    """Of a square 2 x 2 it begins half a pixel towards the origin; at the rims only what the picture has counts."""
    picture = np.array([[int(each) for each in row] for row in ("00000", "00110", "00110", "00000")], bool)
    expected = ["01110", "01010", "01110", "00000"]
    assert ["".join(str(int(each)) for each in row) for row in boundary(picture)] == expected
    assert not boundary(np.ones((3, 4), bool)).any()
    corner = np.zeros((3, 3), bool)
    corner[2, 2] = True
    assert boundary(corner).tolist() == [[False] * 3, [False, True, True], [False, True, False]]


def test_contour_accuracy_by_hand() -> None:
    # The diagonal of 20 x 30 is 36.1, so that boundaries at most ceil(0.29) = 1 pixel apart match.
    assert contour_accuracy(square(2, 2), square(2, 2)) == 1
    assert contour_accuracy(square(2, 2), square(2, 3)) == 1
    assert contour_accuracy(square(2, 2), square(10, 20)) == 0
    assert contour_accuracy(square(2, 2), square(0, 0, 0)) == 0
    assert contour_accuracy(square(0, 0, 0), square(2, 2)) == 0
    assert contour_accuracy(square(0, 0, 0), square(0, 0, 0)) == 1
    # A rule of one pixel's width twice as long as the other, 1 pixel of reach: half and one of it is near.
    long, short = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    long[5:], short[5:, :15] = True, True
    precision, recall = (15 + 1) / (15 + 15), (15 + 1) / 30  # the short one turns down at column 14
    assert contour_accuracy(long, short) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)


@pytest.mark.parametrize("size", [(20, 31), (33, 17), (1, 9), (12, 12)])
@pytest.mark.parametrize("tolerance", [0.008, 0.05, 0.1])
def test_contour_accuracy_matches_boundaries_pixel_by_pixel(size: tuple[int, int], tolerance: float) -> None:
    generator = np.random.default_rng(size)
    for _ in range(6):
        truth = generator.random(size) > 0.9
        truth |= np.roll(truth, 1, axis=1)
        found = np.roll(truth, tuple(generator.integers(-2, 3, 2)), axis=(0, 1)) ^ (generator.random(size) > 0.97)
        np.testing.assert_array_equal(np.argwhere(boundary(truth)), np.array(brute_boundary(truth)).reshape(-1, 2))
        expected = brute_contour_accuracy(truth, found, tolerance)
        assert contour_accuracy(truth, found, tolerance=tolerance) == pytest.approx(expected, abs=1e-12)


def test_objects_are_scored_one_by_one() -> None:
    truth, found = square(2, 2) * 1 + square(10, 10) * 5, square(2, 4) * 1
    scores = score_objects(truth, found, [1, 5, 9])
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores[0], [1 / 3, 0, 1])
    assert scores[1, 1:].tolist() == [0, 1]
    assert scores[1, 0] == contour_accuracy(truth == 1, found == 1)


def test_statistics_by_hand() -> None:
    # Nine frames: quarters begin at 1, 3, 5, 7 and end where the next begins, so that each has three frames.
    scores = np.array([0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 0.3, 0.2, 0.1])
    found = statistics(scores)
    assert found.mean == pytest.approx(4.8 / 9)
    assert found.recall == pytest.approx(3 / 9)
    assert found.decay == pytest.approx(0.9 - 0.2)
    assert statistics(np.array([0.7])) == (0.7, 1.0, 0.0)
    # Two frames: 1, 1.25, 1.5, 1.75, 2 are rounded to 1, 1, 2, 2, 2.
    assert statistics(np.array([1.0, 0.0])) == (0.5, 0.5, 1.0)


def test_quarters_of_clips_longer_than_a_byte() -> None:
    """The published code counts frames in eight bits; here long clips have true quarters."""
    scores = np.linspace(1, 0, 401)
    assert statistics(scores).decay == pytest.approx(scores[:101].mean() - scores[300:].mean())


def test_the_summary_is_the_mean_over_objects() -> None:
    objects = [np.array([[1.0, 0.5], [0.8, 0.6]]), np.array([[0.0, 0.2, 0.4], [0.6, 0.4, 0.2]])]
    found = summarise(objects)
    assert list(found) == ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
    assert found["J-Mean"] == pytest.approx((0.75 + 0.2) / 2)
    assert found["F-Mean"] == pytest.approx((0.7 + 0.4) / 2)
    assert found["J&F-Mean"] == pytest.approx((found["J-Mean"] + found["F-Mean"]) / 2)
    assert found["J-Recall"] == pytest.approx((0.5 + 0) / 2)
    assert found["F-Recall"] == pytest.approx((1 + 1 / 3) / 2)

"""Depth as pictures: near is bright, unknown is hatched, files hold millimetres."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.errors import UserError
from vitdense.pictures import colour_depth, depth_panel, depth_range, save_depth_png

RAMP = np.tile(np.linspace(1, 9, 64, dtype=np.float32), (48, 1))


def brightness(colours: np.ndarray) -> np.ndarray:
    return np.asarray(colours @ np.array([0.299, 0.587, 0.114]))


def test_near_is_bright_and_brightness_falls_evenly() -> None:
    light = brightness(colour_depth(RAMP, 1, 9))[0]
    assert (np.diff(light) <= 1).all()
    assert light[0] > 230 > 20 > light[-1]


def test_beyond_the_range_colours_stay_at_its_ends() -> None:
    colours = colour_depth(np.array([[0.5, 1, 9, 90]], np.float32), 1, 9)
    assert np.array_equal(colours[0, 0], colours[0, 1])
    assert np.array_equal(colours[0, 2], colours[0, 3])


@pytest.mark.parametrize("unknown", [0, np.nan, np.inf])
def test_unknown_depth_is_grey_stripes(unknown: float) -> None:
    depth = RAMP.copy()
    depth[:20, :20] = unknown
    colours = colour_depth(depth, 1, 9)[:20, :20].astype(int)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 2
    assert np.ptp(colours, axis=2).max() < 16


def test_the_range_leaves_out_the_unknown_and_outliers() -> None:
    depth = RAMP.copy()
    depth[0, 0], depth[0, 1], depth[:10, 5:10] = 1e6, np.nan, 0
    low, high = depth_range(depth)
    assert 1 <= low < 1.3
    assert 8.7 < high <= 9
    assert depth_range(np.zeros((4, 4), np.float32)) == (0, 1)
    low, high = depth_range(np.full((4, 4), 3, np.float32))
    assert low < 3 < high


def test_a_panel_has_the_truth_and_the_error_where_there_is_truth() -> None:
    image = np.full((48, 64, 3), 128, np.uint8)
    with_truth, without = depth_panel(image, RAMP, RAMP * 1.1), depth_panel(image, None, RAMP)
    assert with_truth.width == 4 * 560 + 3 * 16 + 2 * 28
    assert without.width == 2 * 560 + 16 + 2 * 28
    assert with_truth.height == without.height


def test_a_panel_without_any_known_truth_is_drawn() -> None:
    image = np.full((48, 64, 3), 128, np.uint8)
    assert depth_panel(image, np.zeros_like(RAMP), RAMP).width == 4 * 560 + 3 * 16 + 2 * 28


def test_files_hold_millimetres(tmp_path: Path) -> None:
    depth = np.array([[0, 0.0001, 1.2344, 65.535, 1000, np.nan, np.inf, -1]], np.float32)
    save_depth_png(depth, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as file:
        assert np.asarray(file).tolist() == [[0, 1, 1234, 65535, 65535, 0, 0, 0]]


def test_a_mistaken_shape_or_type_is_named() -> None:
    with pytest.raises(UserError, match=r"depth must be \(H, W\) metres as floats, got \(48, 64\) in int64"):
        save_depth_png(np.ones((48, 64), np.int64), "nowhere.png")
    with pytest.raises(UserError, match=r"the depth is \(48, 64\) and the picture \(4, 4\)"):
        depth_panel(np.zeros((4, 4, 3), np.uint8), None, RAMP)

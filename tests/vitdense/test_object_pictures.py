"""Objects over frames: tinted inside, white at their outlines, untouched elsewhere."""

import numpy as np
import pytest

from vitdense.errors import UserError
from vitdense.pictures import draw_objects

PALETTE = [(0, 0, 0), (200, 0, 0), (0, 100, 0)]


def test_objects_are_tinted_and_outlined() -> None:
    image = np.full((6, 8, 3), 50, np.uint8)
    mask = np.zeros((6, 8), np.int32)
    mask[1:4, 1:4], mask[1:4, 5:8] = 1, 2
    drawn = draw_objects(image, mask, PALETTE)
    assert drawn.dtype == np.uint8
    assert drawn[2, 2].tolist() == [125, 25, 25]
    assert drawn[2, 6].tolist() == [25, 75, 25]
    assert drawn[2, 3].tolist() == [255, 255, 255]
    assert drawn[5, 5].tolist() == [50, 50, 50]
    assert (image == 50).all()


def test_masks_that_do_not_fit_are_named() -> None:
    image = np.zeros((6, 8, 3), np.uint8)
    with pytest.raises(UserError, match=r"the mask is \(5, 8\) and the picture \(6, 8\)"):
        draw_objects(image, np.zeros((5, 8), int), PALETTE)
    with pytest.raises(UserError, match=r"holds 3\.\.3, but the palette has 3"):
        draw_objects(image, np.full((6, 8), 3), PALETTE)

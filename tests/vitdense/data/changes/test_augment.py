"""Augmentation of pairs: geometry is one, colours are each one's own or shared, the order may change."""

from typing import Any

import numpy as np
import pytest

from vitdense.contracts import IGNORE
from vitdense.data.changes.augment import PairAugment
from vitdense.data.transforms import PAD_COLOUR, Geometry, Photometric

YS, XS = np.mgrid[0:60, 0:80]
BEFORE = np.stack([XS * 3, YS * 4, np.zeros_like(XS)], 2).astype(np.uint8)
AFTER = np.stack([XS * 3, YS * 4, np.full_like(XS, 255)], 2).astype(np.uint8)
MASK = (XS // 10 + 8 * (YS // 10)).astype(np.int16)
SEEN: dict[str, Any] = {"epoch": 3, "index": 5}


def augment(crop: tuple[int, int] = (32, 32), colours: bool = False, seed: int = 0, **options: Any) -> PairAugment:
    geometry = {key: options.pop(key) for key in ("scale", "flip") if key in options}
    made = Photometric() if colours else None
    return PairAugment(Geometry(crop, category_ratio=1.0, **geometry), made, seed=seed, **options)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.8), (1.3, 2.0)])
@pytest.mark.parametrize("quarter_turns", [False, True])
def test_both_pictures_and_the_mask_stay_on_each_other(scale: tuple[float, float], quarter_turns: bool) -> None:
    for epoch in range(8):
        before, after, mask = augment(scale=scale, quarter_turns=quarter_turns)(
            BEFORE, AFTER, MASK, epoch=epoch, index=0
        )
        assert before.shape == after.shape == (32, 32, 3)
        assert np.array_equal(before[..., :2], after[..., :2])
        inside = mask != IGNORE
        assert (before[inside][:, 2] == 0).all()
        assert (after[inside][:, 2] == 255).all()
        places = before[inside][:, :2].astype(float) / (3, 4)  # where each pixel lay
        cells = np.stack([mask[inside] % 8 * 10, mask[inside] // 8 * 10], 1)
        assert (np.abs(places - cells - 4.5) < 6.5).all()


def test_every_turn_and_flip_occurs() -> None:
    turned = augment((60, 60), quarter_turns=True, scale=(1.0, 1.0))
    corners = set()
    for epoch in range(60):
        mask = turned(BEFORE[:, :60], AFTER[:, :60], MASK[:, :60], epoch=epoch, index=0)[2]
        corners.add((int(mask[0, 0]), int(mask[0, -1])))
    assert len(corners) == 8


def test_colours_are_each_ones_own_or_shared() -> None:
    own = [augment((60, 80), True, flip=False, scale=(1.0, 1.0))(BEFORE, BEFORE, MASK, epoch=e, index=0)
           for e in range(6)]  # fmt: skip
    assert sum(not np.array_equal(before, after) for before, after, _ in own) >= 4
    shared = augment((60, 80), True, flip=False, scale=(1.0, 1.0), shared_colours=True)
    changed = 0
    for epoch in range(6):
        before, after, mask = shared(BEFORE, BEFORE, MASK, epoch=epoch, index=0)
        assert np.array_equal(before, after)
        assert np.array_equal(mask, MASK)
        changed += not np.array_equal(before, BEFORE)
    assert changed >= 4


def test_the_order_is_swapped_in_half_of_the_pairs() -> None:
    swapping = augment((60, 80), swap=True, flip=False, scale=(1.0, 1.0))
    swapped, kept = 0, 0
    for index in range(40):
        before, after, _ = swapping(BEFORE, AFTER, MASK, epoch=0, index=index)
        swapped += np.array_equal(before, AFTER) and np.array_equal(after, BEFORE)
        kept += np.array_equal(before, BEFORE) and np.array_equal(after, AFTER)
    assert swapped + kept == 40
    assert 10 < swapped < 30


def test_small_pictures_are_padded_and_unlabelled_there() -> None:
    before, after, mask = augment((100, 100), scale=(1.0, 1.0))(BEFORE, AFTER, MASK, **SEEN)
    assert (mask[60:] == IGNORE).all()
    assert (mask[:, 80:] == IGNORE).all()
    assert (before[60:] == PAD_COLOUR).all()
    assert (after[:, 80:] == PAD_COLOUR).all()


def test_equal_numbers_give_equal_pixels_and_others_do_not() -> None:
    options: dict[str, Any] = {"colours": True, "quarter_turns": True, "swap": True, "scale": (0.5, 2.0)}
    one, other = (augment(**options)(BEFORE, AFTER, MASK, **SEEN) for _ in range(2))
    assert all(np.array_equal(one[place], other[place]) for place in range(3))
    for seed, seen in ((1, SEEN), (0, {**SEEN, "epoch": 4}), (0, {**SEEN, "index": 6})):
        assert not np.array_equal(one[0], augment(seed=seed, **options)(BEFORE, AFTER, MASK, **seen)[0])

"""The embedded pairs: what counts as change and what does not, drawn from (seed, index) alone."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vitdense.contracts import DATA, Samples, Split
from vitdense.data.audit import Audit, survey
from vitdense.data.changes.rearranged import Rearranged, render_pair
from vitdense.data.loader import train_loader

SMALL = {"size": [32, 40], "train_size": 12, "val_size": 30, "workers": 0, "batch_size": 4}


def build(split: Split = "val", **options: object) -> Samples:
    return DATA.create("shapes_change", {**SMALL, **options}).build(split)


def farther_than(changed: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Pixels farther from all change than shadows and blur reach."""
    near = cv2.dilate(changed.astype(np.uint8), np.ones((2 * distance + 1,) * 2, np.uint8))
    return np.asarray(near == 0)


def test_a_pair_has_two_pictures_and_one_mask() -> None:
    sample = build()[0, 2]
    assert sample["image"].shape == (3, 2, 32, 40)
    assert sample["image"].dtype == torch.uint8
    assert sample["mask"].shape == (32, 40)
    assert sample["mask"].dtype == torch.int16
    assert build().classes == ("unchanged", "changed")


def test_without_nuisance_pictures_differ_where_things_changed_and_nowhere_else() -> None:
    compared = 0
    for index in range(12):
        pair = render_pair(0, index, (96, 120), nuisance=False)
        apart = (pair.before != pair.after).any(2)
        far = farther_than(pair.changed, 24)
        compared += far.sum()
        assert not apart[far].any()
        if pair.changed.any():
            assert apart[pair.changed].mean() > 0.9
    assert compared > 12 * 96 * 120 * 0.1


def test_nuisance_is_everywhere_and_no_change() -> None:
    for index in range(6):
        plain, lit = (render_pair(0, index, 64, nuisance=nuisance) for nuisance in (False, True))
        assert np.array_equal(plain.changed, lit.changed)
        assert np.array_equal(plain.before, lit.before)
        still = ~lit.changed
        assert (lit.before[still] != lit.after[still]).any(1).mean() > 0.5


def test_some_pairs_change_a_lot_some_not_at_all() -> None:
    shares = np.array([render_pair(0, index, 48).changed.mean() for index in range(120)])
    assert 0.1 < shares.mean() < 0.35
    assert 0.02 < (shares == 0).mean() < 0.3
    assert shares.max() > 0.4


def test_a_pair_depends_on_seed_and_index_alone() -> None:
    one, other = (render_pair(1, 7, 48) for _ in range(2))
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in Rearranged.__dataclass_fields__)
    for given in ((2, 7, 0), (1, 8, 0), (1, 7, 3)):
        assert not np.array_equal(one.before, render_pair(*given[:2], 48, stream=given[2]).before)


def test_training_draws_anew_and_validation_the_same() -> None:
    train, val = build("train"), build()
    assert not torch.equal(train[0, 3]["image"], train[1, 3]["image"])
    assert torch.equal(train[1, 3]["image"], build("train")[1, 3]["image"])
    assert torch.equal(val[0, 3]["image"], val[1, 3]["image"])
    assert not torch.equal(train[0, 3]["image"], val[0, 3]["image"])


def test_batches_of_pairs_and_their_audit() -> None:
    config = DATA.create("shapes_change", SMALL)
    batch = next(iter(train_loader(config.build("train"), config, seed=0, start_step=0, num_steps=1)))
    assert batch["images"].shape == (4, 3, 2, 32, 40)
    assert batch["masks"].shape == (4, 32, 40)
    assert batch["sizes"] == [(32, 40)] * 4
    audit = survey(build())
    assert isinstance(audit, Audit)
    assert (audit.read, audit.faults) == (30, [])
    assert (audit.pixels[1:] > 0).all()

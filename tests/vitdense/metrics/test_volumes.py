"""Dice by volume: hand-worked, the same under any split, the background left out."""

import math

import pytest
import torch

from vitdense.contracts import IGNORE
from vitdense.errors import UserError
from vitdense.metrics.volumes import VolumeDice

CLASSES = ("background", "liver", "spleen")


def test_a_class_counts_in_the_volumes_that_have_it() -> None:
    metric = VolumeDice(CLASSES)
    truth = torch.zeros(2, 1, 2, 4, dtype=torch.int16)
    truth[0, 0, 0] = 1  # four voxels of liver in the first volume
    truth[1, 0, 1, :2] = 2  # two of spleen in the second
    found = truth.clone()
    found[0, 0, 0, 2:] = 0  # half of the liver: 2 * 2 / (4 + 2)
    found[1, 0, 0, 0] = 1  # liver where there is none: 0
    metric.update([*found], {"masks": truth})
    assert metric.compute()["Dice"] == pytest.approx(((2 / 3 + 0) / 2 + 1) / 2)
    details = metric.details()
    assert details["volumes"] == [2, 2, 1]
    assert details["Dice"][1:] == pytest.approx([1 / 3, 1.0])


def test_voxels_without_a_label_count_for_nothing() -> None:
    metric = VolumeDice(CLASSES)
    truth = torch.tensor([[[[1, 1, IGNORE, 0]]]], dtype=torch.int16)
    metric.update([torch.tensor([[[1, 1, 1, 0]]])], {"masks": truth})
    assert metric.compute()["Dice"] == 1.0


def test_any_split_into_batches_gives_the_same() -> None:
    truth, found = torch.randint(0, 3, (4, 3, 5, 6), dtype=torch.int16), torch.randint(0, 3, (4, 3, 5, 6))
    whole, parts = VolumeDice(CLASSES), [VolumeDice(CLASSES), VolumeDice(CLASSES)]
    whole.update([*found], {"masks": truth})
    for number, part in enumerate(parts):
        for index in (2 * number, 2 * number + 1):
            part.update([found[index]], {"masks": truth[index : index + 1], "ids": ["x"]})
    parts[0].reduce(lambda totals: totals + parts[1].totals)
    assert parts[0].compute() == whole.compute()


def test_nothing_at_all_is_not_a_number_and_a_wrong_size_is_named() -> None:
    assert math.isnan(VolumeDice(CLASSES).compute()["Dice"])
    with pytest.raises(UserError, match=r"case 3: the prediction is \(1, 2, 3\)"):
        VolumeDice(CLASSES).update([torch.zeros(1, 2, 3)], {"masks": torch.zeros(1, 1, 2, 4), "ids": ["case 3"]})

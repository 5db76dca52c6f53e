"""Heads by name."""

from typing import Any

import pytest
import torch

from heads import create_head
from vitdense.contracts import HEADS, Batch, Level
from vitdense.errors import UserError

LEVELS = (Level(8, 8), Level(12, 16))


def test_every_head_is_known_by_name() -> None:
    assert {"linear", "upernet"} <= set(HEADS.names())


def test_an_unknown_head_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no head named 'upernett'; did you mean 'upernet'"):
        create_head("upernett", LEVELS, num_classes=5)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(UserError, match=r"upernet\.chanels: unknown key, did you mean 'channels'"):
        create_head("upernet", LEVELS, num_classes=5, chanels=5)


def test_a_head_without_classes_is_refused_at_the_door() -> None:
    with pytest.raises(UserError, match="needs num_classes"):
        HEADS.create("linear").build(LEVELS)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("linear", {"num_classes": 5}, "a head of segmentation learns from masks"),
        ("linear_depth", {"max_depth": 10.0}, "a head of depth learns from depth"),
    ],
)
def test_data_without_what_a_head_learns_from_are_told(name: str, options: dict[str, Any], told: str) -> None:
    head = create_head(name, LEVELS, **options)
    batch: Batch = {"images": torch.rand(2, 3, 32, 48), "sizes": [(32, 48)] * 2}
    outputs = head([torch.rand(2, 8, 4, 6), torch.rand(2, 12, 2, 3)], batch)
    with pytest.raises(UserError, match=f"{told}.*, but the batch has only images, sizes"):
        head.losses(outputs, batch)

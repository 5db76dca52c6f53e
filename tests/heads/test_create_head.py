"""Heads by name."""

import pytest

from heads import create_head
from vitdense.contracts import HEADS, Level
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

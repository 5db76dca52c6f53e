"""The registry: presets, families, and what it says of unknown names."""

import pytest
from pydantic import ValidationError

from vitdense.errors import UserError
from vitdense.registry import Config, Registry


class Shape(Config):
    sides: int = 3
    size: float = 1.0


class Foreign(Config):
    architecture: str


def registry() -> Registry[Config]:
    names: Registry[Config] = Registry("shape", plugins=False)
    names.register("square", sides=4)(names.register("triangle")(Shape))
    names.register_family("other")(Foreign)
    return names


def test_presets_stand_under_the_options() -> None:
    square = registry().create("square", {"size": 2.0})
    assert (square.model_dump(), square.preset, square.given) == ({"sides": 4, "size": 2.0}, "square", {"size": 2.0})
    assert registry().create("square", {"sides": 5}).model_dump() == {"sides": 5, "size": 1.0}


def test_a_family_takes_the_part_behind_the_slash() -> None:
    assert registry().create("other/round_thing").model_dump() == {"architecture": "round_thing"}


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no shape named 'sqare'; did you mean 'square'\?"):
        registry().create("sqare")


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(UserError, match=r"no shape named 'xyz'; known: square, triangle, other/\.\.\."):
        registry().create("xyz")


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValidationError):
        registry().create("square", {"colour": "red"})


def test_a_name_can_be_registered_once_only() -> None:
    names = registry()
    with pytest.raises(ValueError, match="shape 'square' is registered twice"):
        names.register("square")(Shape)


def test_names_match_shell_patterns() -> None:
    assert registry().names("t*") == ["triangle"]
    assert registry().families() == ["other"]

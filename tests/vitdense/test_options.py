"""Options as key=value: types as YAML has them, keys of keys, and what is told of bad ones."""

import pytest

from vitdense.errors import UserError
from vitdense.options import read_options, read_values
from vitdense.registry import Config


class Tiles(Config):
    tile: int = 256
    scale: float | None = 1.0


def test_values_are_read_as_yaml_and_dots_lead_inwards() -> None:
    given = ["tile=64", "scale=null", "name=a=b", "layers=[1, 2]", "backbone.drop_path=0.1", "backbone.depth=3"]
    assert read_values(given, "--set") == {
        "tile": 64,
        "scale": None,
        "name": "a=b",
        "layers": [1, 2],
        "backbone": {"drop_path": 0.1, "depth": 3},
    }
    assert read_values([], "--set") == {}


def test_options_are_those_of_a_class() -> None:
    assert read_options(Tiles, ["scale=2"], "--tiles") == Tiles(scale=2.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("tile", "--tiles tile: expected key=value"),
        ("=3", "--tiles =3: expected key=value"),
        ("tile=[1", r"--tiles tile=\[1: can't be read"),
        ("tile=wide", "--tiles tile: input should be a valid integer.*given 'wide'"),
        ("tiel=3", "--tiles tiel: unknown key, did you mean 'tile'.*allowed: scale, tile"),
    ],
)
def test_a_bad_option_is_named(given: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_options(Tiles, [given], "--tiles")

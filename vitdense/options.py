"""Options given as key=value, on the command line and in code."""

from collections.abc import Iterable
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from vitdense.errors import UserError
from vitdense.registry import Config, faults_of

C = TypeVar("C", bound=Config)


def read_values(given: Iterable[str], flag: str) -> dict[str, Any]:
    """Values as YAML reads them, "a.b=1" as {"a": {"b": 1}}; UserError where there is no key=value."""
    options = list(given)
    for option in options:
        key, equals, _ = option.partition("=")
        if not key or not equals:
            raise UserError(f"{flag} {option}: expected key=value")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.from_dotlist(options))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{flag} {' '.join(options)}: can't be read ({' '.join(str(error).split())})") from None
    return dict(values)


def read_options(kind: type[C], given: Iterable[str], flag: str) -> C:
    """The options of a class from key=value; UserError says which are bad."""
    return make(kind, read_values(given, flag), f"{flag} ")


def make(kind: type[C], values: dict[str, Any], before: str) -> C:
    """The options of a class from their values; UserError says which are bad, with `before` in front of each key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = [f"{before}{key}: {told}" if key else told for key, told in faults_of(error, kind)]
        raise UserError("; ".join(faults)) from None

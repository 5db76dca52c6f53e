"""Classes of pictures beside the class names that prompts are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from vitdense.errors import UserError
from vitdense.registry import nearest
from vitdense.zero_shot.prompts import ClassName, checked_classes


@dataclass(frozen=True)
class Matched:
    """Class names for prompts, and for each class of the pictures its place among them; `note` says what was done."""

    classes: tuple[ClassName, ...]
    places: tuple[int, ...]
    note: str = ""


def match_classes(names: Sequence[str], given: Sequence[ClassName]) -> Matched:
    """The classes of pictures beside those of prompts.

    None given: the pictures' own. All found by name, whatever their case and with _ or - for a space: those, of which
    there may be more than the pictures have. Else, where there are as many and none that is found stands elsewhere: in
    their order, with a note. UserError where they can't be brought together.
    """
    if not given:
        own = [ClassName(name, (" ".join(name.replace("_", " ").split()),)) for name in names]
        return Matched(checked_classes(own, "the pictures' classes"), tuple(range(len(own))))
    exact = {each.name: place for place, each in enumerate(given)}
    loose = {_plain(each.name): place for place, each in reversed(list(enumerate(given)))}
    found = [exact.get(name, loose.get(_plain(name))) for name in names]
    places = [place for place in found if place is not None]
    if len(places) == len(names):
        _check_apart(names, places, given)
        return Matched(tuple(given), tuple(places))
    if len(given) == len(names) and all(place in (None, index) for index, place in enumerate(found)):
        strange = found.index(None)
        note = (
            f"class names are taken in the order of the pictures' classes: {names[strange]} is {given[strange].name!r}"
        )
        named = [ClassName(name, each.words) for name, each in zip(names, given, strict=True)]
        return Matched(tuple(named), tuple(range(len(named))), note)
    missing = [name for name, place in zip(names, found, strict=True) if place is None]
    hint = nearest(missing[0], [each.name for each in given])
    raise UserError(
        f"the pictures have {len(names)} classes, and {', '.join(map(repr, missing[:5]))} of them"
        f" {'is' if len(missing) == 1 else 'are'} not among the {len(given)} class names{hint}; name them as the"
        f" pictures do, {names[0]}=words where prompts say other words"
    )


def _check_apart(names: Sequence[str], places: Sequence[int], given: Sequence[ClassName]) -> None:
    taken: dict[int, str] = {}
    for name, place in zip(names, places, strict=True):
        if place in taken:
            raise UserError(
                f"the pictures' classes {taken[place]!r} and {name!r} are both {given[place].name!r} among the class"
                " names: name each of them as the pictures do"
            )
        taken[place] = name


def _plain(name: str) -> str:
    """T_Shirt, t-shirt and "t shirt" are one."""
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())

"""Rows of a table of names, theirs and ours, and the one function that reads such a table both ways."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from vitdense.errors import WeightsError

Way = Literal["in", "out"]
Part = tuple[int, int, int]
WHOLE: Part = (0, 1, 1)

# {i}, {i+1}, {2i+1}: a number in a name, as a factor, a letter or "last", and an offset.
_NUMBER = re.compile(r"\{(\d*)([a-z]|last)([+-]\d+)?\}")
_STAGE = re.compile(r"(?:layers|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class Change:
    """What is done to a tensor on its way in, and its reverse on the way out; None where nothing is written so."""

    into: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Row:
    """One of their names and what it is called here; of several names the first is written and all are read.

    In names `{i}` is a number, `{i+1}` and `{2i+1}` are others that follow from it, `{last}` is the last stage's, and
    `*` at the end is the rest of the key. `part=(k, n)`: theirs is the k-th of n equal parts of ours (q, k and v of
    qkv). `cut=(a, b, n)`: ours is what lies between the a-th and the b-th of n equal parts of theirs. A `spare` row
    yields to others of the same name of ours on the way in, and is written besides them on the way out.
    """

    theirs: str | tuple[str, ...]
    ours: str
    part: tuple[int, int] | None = None
    cut: Part | None = None
    change: Change | None = None
    spare: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, the one that is written first."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    def source(self, way: Way) -> tuple[str, ...]:
        """The templates of the keys that this row reads."""
        return self.names if way == "in" else (self.ours,)

    def target(self, way: Way) -> str:
        """The template of the keys that this row writes."""
        return self.ours if way == "in" else self.names[0]

    def taken(self, way: Way) -> Part:
        """Which part of the source this row takes."""
        return self._part_of_theirs if way == "in" else self._part_of_ours

    def given(self, way: Way) -> Part:
        """Which part of the target this row gives."""
        return self._part_of_ours if way == "in" else self._part_of_theirs

    @property
    def _part_of_ours(self) -> Part:
        return WHOLE if self.part is None else (self.part[0], self.part[0] + 1, self.part[1])

    @property
    def _part_of_theirs(self) -> Part:
        return self.cut or WHOLE


@dataclass
class Translated:
    """Tensors under their new names, and the keys that no row names (`strange`) or that others overruled (`spare`)."""

    state: dict[str, Tensor] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    spare: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Piece:
    given: Part
    tensor: Tensor
    key: str
    spare: bool


def translate(state: Mapping[str, Tensor], table: tuple[Row, ...], way: Way) -> Translated:
    """Their names to ours (way "in"), or ours to theirs ("out"); a key whose parts are not all there is strange."""
    last = _last_stage(state, table, way)
    pieces: dict[str, list[_Piece]] = {}
    done = Translated()
    for key, tensor in state.items():
        rows = rows_for(key, table, way, last)
        if not rows:
            done.strange.append(key)
        for row, target in rows:
            piece = _take(tensor, row.taken(way), key)
            if row.change is not None:
                change = row.change.into if way == "in" else row.change.out
                assert change is not None, f"nothing is written by {row.theirs}"
                piece = change(piece)
            pieces.setdefault(target, []).append(_Piece(row.given(way), piece, key, row.spare))
    for target, found in pieces.items():
        _assemble(target, found, way, done)
    return done


def rows_for(key: str, table: tuple[Row, ...], way: Way, last: int | None) -> list[tuple[Row, str]]:
    """The first row that names a key, with those that take the other parts of it; and the key's new name by each."""
    found: list[tuple[Row, str]] = []
    for row in table:
        if last is None and "{last}" in row.ours:
            continue
        match = next((values for each in row.source(way) if (values := fits(each, key, last)) is not None), None)
        if match is None:
            continue
        if not found or _goes_along(row, found[0][0], way):
            found.append((row, render(row.target(way), match, last)))
    return found


def _goes_along(row: Row, first: Row, way: Way) -> bool:
    """Whether a row takes a part of the same key that the first doesn't take, or a copy of it."""
    if way == "out" and row.spare:
        return True
    others = first.taken(way) != row.taken(way) and first.taken(way)[2] == row.taken(way)[2]
    return others and first.source(way) == row.source(way)


def _take(tensor: Tensor, part: Part, key: str) -> Tensor:
    start, stop, count = part
    if count == 1:
        return tensor
    if tensor.ndim == 0 or tensor.shape[0] % count:
        raise WeightsError(f"{key} {tuple(tensor.shape)} doesn't divide into {count} parts")
    size = tensor.shape[0] // count
    return tensor[start * size : stop * size]


def _assemble(target: str, found: list[_Piece], way: Way, done: Translated) -> None:
    """Pieces of one tensor joined, if they are all there and each is there once."""
    firm = [piece for piece in found if not piece.spare]
    if firm and way == "in":
        done.spare += [piece.key for piece in found if piece.spare]
        found = firm
    found = sorted(found, key=lambda piece: piece.given)
    if len({piece.given for piece in found}) < len(found):
        raise WeightsError(f"{' and '.join(sorted(piece.key for piece in found))} are both {target}")
    if sum(stop - start for start, stop, _ in (piece.given for piece in found)) < found[0].given[2]:
        done.strange += [piece.key for piece in found]
        return
    done.state[target] = found[0].tensor if len(found) == 1 else torch.cat([piece.tensor for piece in found])


def _last_stage(state: Mapping[str, Tensor], table: tuple[Row, ...], way: Way) -> int | None:
    """The number of the last stage, by our names."""
    ours = [target for key in state for _, target in rows_for(key, table, way, None)] if way == "in" else state
    stages = [int(match[1]) for key in ours if (match := _STAGE.match(key))]
    return max(stages, default=None)


def fits(template: str, key: str, last: int | None) -> dict[str, str] | None:
    """The values of a template's numbers and rest that make it this key, or None."""
    pattern, numbers = _compiled(template)
    match = pattern.match(key)
    if match is None:
        return None
    values: dict[str, str] = {"*": match["rest"]} if "rest" in match.groupdict() else {}
    for group, (factor, letter, offset) in enumerate(numbers, start=1):
        value, remainder = divmod(int(match[group]) - offset, factor)
        wanted = last if letter == "last" else int(values.get(letter, value))
        if remainder or value < 0 or wanted != value:
            return None
        values[letter] = str(value)
    return values


def render(template: str, values: Mapping[str, str], last: int | None) -> str:
    """A template with its numbers and rest filled in."""

    def number(match: re.Match[str]) -> str:
        value = last if match[2] == "last" else int(values[match[2]])
        assert value is not None
        return str(int(match[1] or 1) * value + int(match[3] or 0))

    filled = _NUMBER.sub(number, template)
    return filled.removesuffix("*") + values["*"] if template.endswith("*") else filled


@lru_cache(maxsize=4096)
def _compiled(template: str) -> tuple[re.Pattern[str], tuple[tuple[int, str, int], ...]]:
    body = template.removesuffix("*")
    assert "*" not in body, f"{template}: * stands at the end only"
    literals = _NUMBER.split(body)[::4]
    numbers = tuple((int(a or 1), letter, int(b or 0)) for a, letter, b in _NUMBER.findall(body))
    rest = "(?P<rest>.+)" if template.endswith("*") else ""
    return re.compile(r"(\d+)".join(map(re.escape, literals)) + rest + r"\Z"), numbers

"""One publisher's way to name the tensors of one family, how it is recognised, and how it is written back."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.rows import Row, Translated, fits, translate

# Wrappers that stand for nothing, wherever they are: DataParallel, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")

State = Mapping[str, Tensor]
Sign = str | tuple[str, ...]
Options = Callable[[Checkpoint, State], dict[str, Any]]


def nothing(_: Checkpoint, __: State) -> dict[str, Any]:
    """Options of a dialect that says nothing about how its networks were built."""
    return {}


@dataclass(frozen=True)
class Export:
    """How a backbone is said in another library's terms.

    `files` makes the contents of config.json and such from the backbone and its options. `says` are the options that
    these can hold, at any value, `needs` those that must be set to something, and `fixed` those that the other network
    has built in (one of a frozenset); every other option must be at its default, and `refuses` says what else it hasn't
    got. `dropped` are patterns of our keys that have no place there, `finish` is the last hand on the tensors, and
    `notes` says what differs all the same.
    """

    files: Callable[[Backbone, dict[str, Any]], dict[str, dict[str, Any]]]
    says: frozenset[str]
    needs: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    refuses: Callable[[dict[str, Any]], list[str]] = lambda _: []
    dropped: tuple[str, ...] = ()
    finish: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    notes: Callable[[dict[str, Any]], list[str]] = lambda _: []


@dataclass(frozen=True)
class Dialect:
    """A table of names that reads both ways, with the signature it is recognised by.

    `has` are templates of keys that must all be there (of several in brackets, one) and `lacks` of keys that must not;
    what precedes the first is the root. `inner` is a prefix that may stand behind the root, as transformers has it
    where a model holds its own base model. Keys that match a pattern in `left_out` have no place in a backbone.
    `prepare` does to the keys below the root what no row can. `architecture` is our config's name without "Config", in
    small letters; `options` says how the network was built.
    """

    publisher: str
    family: str
    architecture: str
    has: tuple[Sign, ...]
    table: tuple[Row, ...]
    lacks: tuple[Sign, ...] = ()
    left_out: tuple[str, ...] = ()
    inner: str = ""
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    options: Options = nothing
    export: Export | None = None

    def roots(self, state: State) -> list[str]:
        """Prefixes below which this dialect's keys are found."""
        found = sorted({root for key in state if (root := self._root_of(key)) is not None})
        return [root for root in found if self._signed(self.below(state, root))]

    def below(self, state: State, root: str) -> dict[str, str]:
        """From the keys' names below a root to their full ones."""
        inside = (key for key in state if key.startswith(root))
        return {key.removeprefix(root).removeprefix(self.inner): key for key in inside}

    def convert(self, state: State, root: str) -> tuple[Translated, list[str]]:
        """Tensors under our names, those that no row names under their own, and the keys that were left out."""
        below = self.below(state, root)
        left_out = [key for key in state if not key.startswith(root)]
        left_out += [key for inner, key in below.items() if self._has_no_place(inner)]
        inside = {inner: state[key] for inner, key in below.items() if not self._has_no_place(inner)}
        inside = self.prepare(inside)
        done = translate(inside, self.table, "in")
        done.state |= {key: inside[key] for key in done.strange}
        return done, left_out + [below[key] for key in done.spare]

    def _has_no_place(self, key: str) -> bool:
        return any(fnmatchcase(key, pattern) for pattern in self.left_out)

    def _root_of(self, key: str) -> str | None:
        """What precedes the first sign in this key; signs begin where a name does."""
        starts = [0, *(match.end() for match in re.finditer(r"[./]", key))]
        for start in starts:
            if _meets(self.has[0], key[start:]):
                return key[:start].removesuffix(self.inner)
        return None

    def _signed(self, keys: Mapping[str, str]) -> bool:
        def met(sign: Sign) -> bool:
            return any(_meets(sign, key) for key in keys)

        return all(met(each) for each in self.has) and not any(met(each) for each in self.lacks)


def _meets(sign: Sign, key: str) -> bool:
    templates = (sign,) if isinstance(sign, str) else sign
    return any(fits(template, key, None) is not None for template in templates)


def without_wrappers(state: State) -> dict[str, Tensor]:
    """The same tensors with wrappers' names taken out of the keys."""
    return {_WRAPPERS.sub("", key): tensor for key, tensor in state.items()}


def detect(state: State, dialects: tuple[Dialect, ...], source: str) -> tuple[Dialect, str]:
    """The dialect of these keys and the root they are below; the first that fits wins."""
    for dialect in dialects:
        roots = dialect.roots(state)
        if len(roots) > 1:
            named = ", ".join(repr(root) for root in roots)
            raise WeightsError(f"{source} holds several backbones, below {named}: pass the tensors of one of them")
        if roots:
            return dialect, roots[0]
    known = ", ".join(dict.fromkeys(f"{each.publisher} {each.family}" for each in dialects))
    raise WeightsError(
        f"{source} is of no family that is known here; known: {known}; its keys begin with {sorted(state)[:4]}"
    )

"""Pickles of tensors, of arrays and of the plain values that trainers leave beside them; nothing in them is run.

numpy trusts the pickles it is made from: a forged one can make it read foreign memory. What stands for numpy's parts
here are notes of what was written, and arrays are made from the raw numbers in them.
"""

import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


class _Type:
    """A note of numpy's dtype."""

    def __init__(self, kind: str, *_: object) -> None:
        self.kind, self.order = kind, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """A note of numpy's array."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> Tensor:
        """The numbers; ValueError where they are none."""
        _, shape, kind, by_columns, raw = self.state
        if not isinstance(kind, _Type) or kind.kind not in _KINDS or kind.order not in "<|=":
            raise ValueError("an array of other things than numbers")
        flat = np.frombuffer(bytearray(raw), dtype=kind.kind)
        return torch.from_numpy(flat.reshape(shape, order="F" if by_columns else "C").copy())


def _bytes(text: str, _: str) -> bytes:
    """How the oldest form of pickles holds bytes."""
    return text.encode("latin1")


def _nothing(*_: object) -> None:
    """A single number of numpy's, such as a score."""


# numpy's names for its parts, the older ones too.
_NOTES: dict[str, Any] = {"numpy.dtype": _Type, "numpy.ndarray": _Array, "_codecs.encode": _bytes}
_NOTES |= {f"numpy.{core}.multiarray._reconstruct": _Array for core in ("_core", "core")}
_NOTES |= {f"numpy.{core}.multiarray.scalar": _nothing for core in ("_core", "core")}


def read_checkpoint(path: Path) -> object:
    """What torch.save wrote; UnpicklingError where it holds more than tensors and plain values."""
    # Namespace holds the arguments that a training was started with.
    with torch.serialization.safe_globals([Namespace, *((note, name) for name, note in _NOTES.items())]):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_pickled_arrays(path: Path) -> object:
    """A pickle of arrays and plain values, as detectron2 publishes (.pkl), with tensors for the arrays."""
    with path.open("rb") as file:
        return _with_tensors(_NotesOnly(file, encoding="latin1").load())


class _NotesOnly(pickle.Unpickler):
    """Finds what arrays are made of, as notes, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _NOTES:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return _NOTES[f"{module}.{name}"]


def _with_tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _with_tensors(value) for key, value in content.items()}
    return content.tensor() if isinstance(content, _Array) else content

"""Arrays of numpy: JAX's archives (.npz), detectron2's pickles (.pkl), and what of numpy torch's files may hold."""

import argparse
import pickle
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor

# big_vision trains with its blocks stacked along a first dimension, and says "encoderblock" without a number then.
_STACKED = "/encoderblock/"

# The module of numpy's that makes arrays, by its present name and by the one that older files say.
_MAKERS = ("numpy._core.multiarray", "numpy.core.multiarray")
_MAKER = import_module(_MAKERS[0])

# Plain values that trainers leave beside the tensors; none of them runs anything when it is read.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")),
    *((getattr(_MAKER, name), f"{maker}.{name}") for maker in _MAKERS for name in ("scalar", "_reconstruct")),
]


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The numbers of an archive by name; ValueError where it holds anything that must be unpickled."""
    if not is_zipfile(path):
        raise ValueError("it is no archive of arrays")
    with np.load(path, allow_pickle=False) as archive:
        return dict(_unstacked((name, _tensor(archive[name])) for name in archive.files))


def read_pickled_arrays(path: Path) -> object:
    """A pickle of arrays and plain values, arrays as tensors; UnpicklingError where it holds anything else."""
    with path.open("rb") as file:
        return _as_tensors(_ArraysOnly(file, encoding="latin1").load())


class _ArraysOnly(pickle.Unpickler):
    """Finds what arrays are made of, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _MAKERS and name in ("_reconstruct", "scalar"):
            return getattr(_MAKER, name)
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how the oldest form of pickles holds bytes
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")


def _as_tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _as_tensors(value) for key, value in content.items()}
    return _tensor(content) if isinstance(content, np.ndarray) else content


def _tensor(array: np.ndarray) -> Tensor:
    # numpy has no bfloat16: it reads two bytes of no type.
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _unstacked(named: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in named:
        if _STACKED not in name:
            yield name, tensor
            continue
        for i, layer in enumerate(tensor):
            yield name.replace(_STACKED, f"/encoderblock_{i}/"), layer

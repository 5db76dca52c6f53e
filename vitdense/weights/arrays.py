"""Archives of arrays (.npz), as JAX's vision projects publish their weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# big_vision trains with its blocks stacked along a first dimension, and says "encoderblock" without a number then.
_STACKED = "/encoderblock/"


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The numbers of an archive by name; ValueError where it holds anything that must be unpickled."""
    if not is_zipfile(path):
        raise ValueError("it is no archive of arrays")
    with np.load(path, allow_pickle=False) as archive:
        return dict(_unstacked((name, _tensor(archive[name])) for name in archive.files))


def _tensor(array: NDArray[Any]) -> Tensor:
    # numpy has no bfloat16: it reads two bytes of no type.
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array)


def _unstacked(named: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in named:
        if _STACKED not in name:
            yield name, tensor
            continue
        for i, layer in enumerate(tensor):
            yield name.replace(_STACKED, f"/encoderblock_{i}/"), layer

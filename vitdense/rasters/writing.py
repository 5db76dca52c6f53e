"""What is written of a raster's prediction, and what it was made of, so that a walk can go on where it stopped."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitdense.errors import UserError

Made = Mapping[str, Any]


def identity(path: Path) -> dict[str, Any]:
    """What tells a file from another and from what it was before, without reading it."""
    facts = path.stat()
    return {"raster": path.name, "bytes": facts.st_size, "changed": facts.st_mtime_ns}


def digest(network: nn.Module, mean: Tensor, std: Tensor) -> str:
    """A network's modules and weights, and the mean and deviation of its pixels, as SHA-256."""
    found = hashlib.sha256(str(network).encode())
    for name, tensor in sorted({**network.state_dict(), "mean": mean, "std": std}.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@dataclass
class Record:
    """How far a prediction has come: `finished` bands, and whether all is `done`; `made_of` says of what it is made.

    It is written aside and renamed, after the pixels that it tells of.
    """

    path: Path
    made_of: Made
    finished: int = 0
    skipped: int = 0
    done: bool = False

    def save(self) -> None:
        """Replace what the file said before."""
        aside = self.path.with_name(self.path.name + ".part")
        told = {"finished": self.finished, "skipped": self.skipped, "done": self.done, "made_of": dict(self.made_of)}
        with aside.open("w", encoding="utf-8") as file:
            file.write(json.dumps(told, indent=1))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path)


def read_record(path: Path, made_of: Made) -> Record:
    """The record of an earlier walk of the same settings, else a fresh one; UserError where one of other settings is
    not done. One that is done makes way, as other results do."""
    made_of = json.loads(json.dumps(made_of))  # tuples are lists in files
    fresh = Record(path, made_of)
    if not path.exists():
        return fresh
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        found = Record(path, told["made_of"], int(told["finished"]), int(told["skipped"]), bool(told["done"]))
    except (OSError, ValueError, TypeError, KeyError) as fault:
        raise UserError(f"{path}: no record of a prediction ({fault!r}); remove it to begin anew") from None
    if found.made_of == made_of:
        return found
    if found.done:
        return fresh
    other = [key for key in {**found.made_of, **made_of} if found.made_of.get(key) != made_of.get(key)]
    then, now = ({key: each.get(key) for key in other} for each in (found.made_of, made_of))
    raise UserError(
        f"{path}: a prediction was begun with {_told(then)}, and now it is {_told(now)}: go on with the same, give "
        "another --out, or remove this file to begin anew"
    )


def _told(values: Made) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


class MappedArray:
    """An array (H, W) in a .npy file of its full size, of which parts are written; nothing of it stays in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, size: tuple[int, int], dtype: np.dtype[Any]) -> None:
        """A new file, with room on the disk for all of it; UserError where there is none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(self.path, mode="w+", dtype=dtype, shape=size)
        if hasattr(os, "posix_fallocate"):  # a disk that is full later would end the process without a word
            with self.path.open("r+b") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, self.path.stat().st_size)
                except OSError as fault:
                    self.path.unlink()
                    raise UserError(f"{self.path}: no room for {size[0]} x {size[1]} pixels ({fault})") from None

    def fits(self, size: tuple[int, int], dtype: np.dtype[Any]) -> bool:
        """Whether the file is there, and of this size."""
        if not self.path.exists():
            return False
        found = self.read()
        return found.shape == size and found.dtype == dtype

    def write(self, top: int, left: int, values: NDArray[Any]) -> None:
        """values: (h, w), which are on the disk when this returns."""
        mapped = np.lib.format.open_memmap(self.path, mode="r+")
        mapped[top : top + values.shape[0], left : left + values.shape[1]] = values
        mapped.flush()

    def read(self) -> NDArray[Any]:
        """(H, W), still on the disk."""
        return np.lib.format.open_memmap(self.path, mode="r")

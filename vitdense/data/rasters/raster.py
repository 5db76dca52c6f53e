"""What a raster is: pixels of any number of channels in a file, of which windows are read."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdense.data.rasters.options import RasterConfig
from vitdense.errors import DataError

Values = NDArray[Any]


class Area(NamedTuple):
    """A window of a raster, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Raster(ABC):
    """Pixels of `size` (H, W) and `channels`, still on the disk; `dtype` is what the file holds."""

    path: Path
    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    georeference: Any = None
    """What places it on the Earth, as the writer of the same format takes it."""

    @abstractmethod
    def read(self, area: Area) -> Values:
        """(C, h, w), in memory of its own."""

    @abstractmethod
    def sampled(self, step: int) -> Values:
        """(C, ceil(H / step), ceil(W / step)): about every `step`-th pixel."""

    def empty(self, area: Area) -> NDArray[np.bool_] | None:
        """(C, h, w): where the file itself says that a channel holds nothing; None where it says nothing of it."""
        return None


def choose(path: Path, count: int, wanted: int, config: RasterConfig) -> list[int] | None:
    """The channels that are picked of `count`, None for all; DataError where they aren't as many as the model takes."""
    chosen = config.channels
    if chosen is not None and max(chosen) >= count:
        raise DataError(f"{path}: channels {list(chosen)} are asked for, and it has {count}, counted from 0")
    given = count if chosen is None else len(chosen)
    if given != wanted:
        whose = "it has" if chosen is None else "picked are"
        raise DataError(
            f"{path}: the model takes {wanted} channels, and {whose} {given}; pick some with channels: 0,..."
        )
    return None if chosen is None else list(chosen)

"""A raster as a model takes it: floats, with what is missing filled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitdense.data.rasters.options import RasterConfig
from vitdense.data.rasters.raster import Area, Raster


@dataclass(frozen=True)
class Source:
    """A raster whose values are divided by a scale; missing pixels become `fill`, a number for each channel: with the
    model's mean they are 0 once it has normalised them."""

    raster: Raster
    config: RasterConfig
    fill: Sequence[float]

    def __post_init__(self) -> None:
        self.config.scale_of(self.raster.dtype, str(self.raster.path))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.raster.size

    def read(self, area: Area) -> tuple[Tensor, NDArray[np.bool_]]:
        """Pixels (C, h, w) in fp32, and which of them are missing, (h, w)."""
        values = self.raster.read(area)
        missing = self.config.missing(values)
        empty = self.raster.empty(area) if self.config.nodata is None else None
        if empty is not None:
            missing |= self.config.over_channels(empty)
        scale = self.config.scale_of(self.raster.dtype, str(self.raster.path))
        with np.errstate(over="ignore"):  # fp64 beyond fp32 becomes infinite, and so missing
            pixels = torch.from_numpy(values.astype(np.float32)) / scale
        missing |= ~torch.isfinite(pixels).all(dim=0).numpy()
        gone = torch.from_numpy(missing)
        fill = torch.tensor(self.fill, dtype=torch.float32).view(-1, 1, 1)
        return torch.where(gone, fill, pixels), missing

"""What has to be said of a raster that its file doesn't say."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator

from vitdense.errors import DataError
from vitdense.registry import Config


class RasterConfig(Config):
    """`scale` is what values are divided by before they are normalised: left out, the largest number of
    8 or 16 unsigned bits, and 1 for floats. `channels` picks some, counted from 0; `layout` says on which axis of an
    array of three they lie.

    A pixel is missing where all of its channels hold `nodata` (one of them, with `nodata_in: any`), or any of them no
    finite number. A GeoTIFF says itself what is missing, unless `nodata` is given.
    """

    scale: PositiveFloat | None = None
    nodata: float | None = None
    nodata_in: Literal["all", "any"] = "all"
    channels: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    layout: Literal["hwc", "chw"] | None = None

    @field_validator("channels", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        """0,1,2 or 4, as a command line has it."""
        if isinstance(given, int):
            return (given,)
        return tuple(given.split(",")) if isinstance(given, str) else given

    def scale_of(self, dtype: np.dtype[Any], name: str) -> float:
        """What values of this type are divided by; DataError where nobody says how large they get."""
        if dtype.kind not in "iuf":
            raise DataError(f"{name}: expected numbers, found {dtype}")
        if self.scale is not None:
            return self.scale
        if dtype.kind == "f":
            return 1.0
        if dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
            return float(np.iinfo(dtype).max)
        raise DataError(f"{name}: {dtype} doesn't say how large values get: give scale, which they are divided by")

    def missing(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """values: (C, h, w) as the file has them -> (h, w)."""
        gone = np.zeros(values.shape[1:], bool)
        if values.dtype.kind == "f":
            gone |= ~np.isfinite(values).all(axis=0)
        if self.nodata is not None:
            gone |= self.over_channels(values == self.nodata)
        return gone

    def over_channels(self, empty: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """empty: (C, h, w), where a channel holds nothing -> (h, w), where the pixel counts as missing."""
        return np.asarray(empty.all(axis=0) if self.nodata_in == "all" else empty.any(axis=0))

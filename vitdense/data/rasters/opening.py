"""Rasters in files: arrays of numpy and GeoTIFF, read window by window, and pictures, read whole."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from vitdense.data.images import SUFFIXES as PICTURES
from vitdense.data.images import read_image
from vitdense.data.rasters.geotiff import GeoTiff
from vitdense.data.rasters.options import RasterConfig
from vitdense.data.rasters.raster import Area, Raster, Values, choose
from vitdense.errors import DataError

GEOTIFF = frozenset({".tif", ".tiff"})
SUFFIXES = frozenset({".npy", *GEOTIFF})
"""What is read window by window; any other picture is decoded whole."""

Layout = Literal["hw", "hwc", "chw"]


class ArrayRaster(Raster):
    """An array, which `load` opens for each look at it: what a mapping has seen counts as memory until it is closed."""

    def __init__(self, path: Path, load: Callable[[], Values], wanted: int, config: RasterConfig) -> None:
        array = load()
        if array.ndim not in (2, 3) or 0 in array.shape:
            raise DataError(f"{path}: expected (H, W), (H, W, C) or (C, H, W), found {array.shape}")
        self._load, self._layout = load, find_layout(path, array.shape, wanted, config)
        count, height, width = _channels_first(array, self._layout).shape
        self._chosen = choose(path, count, wanted, config)
        self.path, self.size, self.channels, self.dtype = path, (height, width), wanted, array.dtype

    def read(self, area: Area) -> Values:
        """(C, h, w)."""
        top, left, height, width = area
        window = _channels_first(self._load(), self._layout)[:, top : top + height, left : left + width]
        return np.array(window if self._chosen is None else window[self._chosen])

    def sampled(self, step: int) -> Values:
        """(C, ceil(H / step), ceil(W / step))."""
        window = _channels_first(self._load(), self._layout)[:, ::step, ::step]
        return np.array(window if self._chosen is None else window[self._chosen])


def open_raster(path: Path, wanted: int, config: RasterConfig | None = None) -> Raster:
    """A raster for a model of `wanted` channels; DataError where it can't be read or has other channels."""
    config = config or RasterConfig()
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if suffix in GEOTIFF:
        return GeoTiff(path, wanted, config)
    if suffix == ".npy":
        return ArrayRaster(path, partial(_map, path), wanted, config)
    if suffix in PICTURES:
        pixels = read_image(path)
        return ArrayRaster(path, lambda: pixels, wanted, config)
    raise DataError(
        f"{path}: no raster; read are .npy, .tif, .tiff and, whole, {', '.join(sorted(PICTURES - GEOTIFF))}"
    )


def find_layout(path: Path, shape: tuple[int, ...], wanted: int, config: RasterConfig) -> Layout:
    """Which axis has the channels: the one that is as long as the model's channels are many; DataError where both or
    none is."""
    if len(shape) == 2:
        return "hw"
    if config.layout is not None:
        return config.layout
    if config.channels is not None:
        raise DataError(f"{path}: {shape}: channels are picked, but from which axis? Give layout: hwc or layout: chw")
    layouts: tuple[tuple[Layout, int], ...] = (("hwc", shape[2]), ("chw", shape[0]))
    fitting = [layout for layout, count in layouts if count == wanted]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(f"{path}: {shape} may be (H, W, C) or (C, H, W): give layout: hwc or layout: chw")
    raise DataError(
        f"{path}: {shape} has no axis of {wanted} channels, which the model takes; pick some by their numbers, such as "
        f"channels: {','.join(map(str, range(wanted)))} and layout: hwc"
    )


def _map(path: Path) -> Values:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError) as fault:
        reason = "the file is empty" if path.stat().st_size == 0 else f"no array that numpy can read ({fault})"
        raise DataError(f"{path}: {reason}") from None


def _channels_first(array: Values, layout: Layout) -> Values:
    """(C, H, W), without a copy."""
    if layout == "hw":
        return array[None]
    return array if layout == "chw" else array.transpose(2, 0, 1)

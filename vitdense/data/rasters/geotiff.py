"""GeoTIFF through rasterio, which is no dependency: windows of one, and class maps that lie where it lies."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdense.data.rasters.options import RasterConfig
from vitdense.data.rasters.raster import Area, Raster, Values, choose
from vitdense.errors import DataError, UserError

BLOCK = 512


class GeoTiff(Raster):
    """The bands of a GeoTIFF, or some of them; its georeference is {"crs", "transform"}."""

    def __init__(self, path: Path, wanted: int, config: RasterConfig) -> None:
        rasterio = _rasterio(path)
        try:
            self._dataset: Any = rasterio.open(path)
        except rasterio.errors.RasterioError as fault:
            raise DataError(f"{path}: no raster that rasterio can read ({fault})") from None
        kinds = set(self._dataset.dtypes)
        if len(kinds) != 1:
            raise DataError(f"{path}: its bands are of several types, {', '.join(sorted(kinds))}")
        chosen = choose(path, self._dataset.count, wanted, config)
        self._bands = [number + 1 for number in (range(self._dataset.count) if chosen is None else chosen)]
        self._window, self._fault = rasterio.windows.Window, rasterio.errors.RasterioError
        self.path, self.channels, self.dtype = path, wanted, np.dtype(kinds.pop())
        self.size = (self._dataset.height, self._dataset.width)
        self.georeference = {"crs": self._dataset.crs, "transform": self._dataset.transform}

    def read(self, area: Area) -> Values:
        """(C, h, w)."""
        return self._ask(self._dataset.read, window=self._window(area.left, area.top, area.width, area.height))

    def sampled(self, step: int) -> Values:
        """(C, ceil(H / step), ceil(W / step)), from the file's own overviews where it has such."""
        height, width = self.size
        return self._ask(self._dataset.read, out_shape=(self.channels, -(-height // step), -(-width // step)))

    def empty(self, area: Area) -> NDArray[np.bool_]:
        """(C, h, w): where the file's nodata value, mask or alpha says that there is nothing."""
        window = self._window(area.left, area.top, area.width, area.height)
        return np.asarray(self._ask(self._dataset.read_masks, window=window) == 0)

    def _ask(self, reading: Any, **where: Any) -> NDArray[Any]:
        try:
            return np.asarray(reading(self._bands, **where))
        except self._fault as fault:
            raise DataError(f"{self.path}: damaged raster ({fault})") from None


def write_geotiff(path: Path, values: NDArray[Any], georeference: Any, nodata: float) -> None:
    """values: (H, W), perhaps still on the disk -> a GeoTIFF in compressed tiles, written aside and renamed."""
    rasterio = _rasterio(path)
    height, width = values.shape
    aside = path.with_name(path.name + ".part")
    facts = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": values.dtype.name}
    tiles = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "BIGTIFF": "IF_SAFER"}
    with rasterio.open(aside, "w", **facts, **tiles, **georeference, nodata=nodata) as target:
        for top in range(0, height, BLOCK):
            rows = np.ascontiguousarray(values[top : top + BLOCK])
            target.write(rows, 1, window=rasterio.windows.Window(0, top, width, len(rows)))
    aside.replace(path)


def _rasterio(path: Path) -> Any:
    try:
        import rasterio
        import rasterio.errors
        import rasterio.windows
    except ImportError:
        raise UserError(
            f'{path}: GeoTIFF needs rasterio: pip install "vitdense[rasters]", or save the pixels as .npy'
        ) from None
    return rasterio

"""GeoTIFF by rasterio: windows, what is missing, and a class map that lies where its raster lies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vitdense.data.rasters import Area, RasterConfig, Source, open_raster
from vitdense.data.rasters.geotiff import write_geotiff
from vitdense.errors import DataError

rasterio = pytest.importorskip("rasterio")

Save = Callable[..., Path]
AREA, WINDOW = Area(3, 5, 40, 27), (slice(None), slice(3, 43), slice(5, 32))


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes bands (C, H, W) at 10 m a pixel in UTM zone 32."""

    def write(bands: NDArray[Any], nodata: float | None = None) -> Path:
        path = tmp_path / "scene.tif"
        count, height, width = bands.shape
        facts = {"count": count, "height": height, "width": width, "dtype": bands.dtype.name, "nodata": nodata}
        place = {"crs": "EPSG:32632", "transform": rasterio.transform.from_origin(500_000, 5_400_000, 10, 10)}
        with rasterio.open(path, "w", driver="GTiff", **facts, **place) as target:
            target.write(bands)
        return path

    return write


def numbers(*shape: int) -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(1, 5000, shape).astype(np.uint16)


def test_windows_and_bands(save: Save) -> None:
    bands = numbers(5, 60, 80)
    path = save(bands)
    raster = open_raster(path, 5)
    assert (raster.size, raster.dtype) == ((60, 80), np.dtype(np.uint16))
    assert np.array_equal(raster.read(AREA), bands[WINDOW])
    picked = open_raster(path, 2, RasterConfig(channels=(3, 0)))
    assert np.array_equal(picked.read(AREA), bands[[3, 0]][WINDOW])
    assert picked.sampled(7).shape == (2, 9, 12)
    with pytest.raises(DataError, match="the model takes 3 channels, and it has 5"):
        open_raster(path, 3)


def test_the_files_own_nodata_is_missing_unless_another_is_given(save: Save) -> None:
    bands = numbers(2, 60, 80)
    bands[:, 10, 20], bands[0, 11, 21] = 0, 0
    path = save(bands, 0)
    for options, count in (({}, 1), ({"nodata_in": "any"}, 2), ({"nodata": 6000}, 0)):
        config = RasterConfig.model_validate(options)
        _, missing = Source(open_raster(path, 2, config), config, (0.0, 0.0)).read(AREA)
        assert missing.sum() == count


def test_a_class_map_lies_where_its_raster_lies(save: Save, tmp_path: Path) -> None:
    raster = open_raster(save(numbers(1, 700, 80)), 1)
    classes = np.random.default_rng(0).integers(0, 6, (700, 80)).astype(np.uint8)
    write_geotiff(tmp_path / "classes.tif", classes, raster.georeference, 255)
    with rasterio.open(tmp_path / "classes.tif") as found, rasterio.open(raster.path) as given:
        assert (found.crs, found.transform, found.nodata) == (given.crs, given.transform, 255)
        assert np.array_equal(found.read(1), classes)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.tif").write_bytes(b"II*\0nothing")
    with pytest.raises(DataError, match=r"bad\.tif: no raster that rasterio can read"):
        open_raster(tmp_path / "bad.tif", 3)

"""A GeoTIFF in, a class map that lies where it lies out, also where the walk was stopped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vitdense.model import Model
from vitdense.rasters.predicting import PredictConfig, predict_raster

rasterio = pytest.importorskip("rasterio")


def test_a_geotiff_gives_the_classes_of_the_same_array_and_its_place(
    model: Model,
    scene: NDArray[np.uint8],
    save: Callable[..., Path],
    tmp_path: Path,
) -> None:
    scene[:40, 80:] = 0
    place = {"crs": "EPSG:32632", "transform": rasterio.transform.from_origin(500_000, 5_400_000, 10, 10)}
    facts = {"count": 4, "height": 87, "width": 130, "dtype": "uint8", "nodata": 0, "photometric": "minisblack"}
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", **facts, **place) as target:
        target.write(scene.transpose(2, 0, 1))
    by_array = predict_raster(model, save(scene), tmp_path / "array", PredictConfig(nodata=0))

    out, failing = tmp_path / "out", tmp_path / "out/overlays"
    out.mkdir()
    failing.write_text("in the way of the overview")
    with pytest.raises(FileExistsError):
        predict_raster(model, tmp_path / "scene.tif", out)
    failing.unlink()
    done = predict_raster(model, tmp_path / "scene.tif", out)
    assert done.windows == 0  # all bands were written before
    assert done.result == out / "masks/scene.tif"
    with rasterio.open(done.result) as found:
        assert (found.crs, found.transform) == (rasterio.crs.CRS.from_epsg(32632), place["transform"])
        assert found.nodata == 255
        assert np.array_equal(found.read(1), np.load(by_array.result))
    assert done.skipped == by_array.skipped > 0
    assert {path.name for path in (out / "masks").iterdir()} == {"scene.tif", "scene.json"}
    assert predict_raster(model, tmp_path / "scene.tif", out).windows == 0

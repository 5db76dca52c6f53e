"""Rasters in files: layouts, channels, scales and missing values, and messages for what can't be told."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from vitdense.data.rasters import Area, RasterConfig, Source, open_raster
from vitdense.errors import DataError, UserError

Save = Callable[[NDArray[Any]], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(values: NDArray[Any]) -> Path:
        np.save(tmp_path / "scene.npy", values)
        return tmp_path / "scene.npy"

    return write


def numbers(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def source(path: Path, wanted: int, **options: Any) -> Source:
    config = RasterConfig.model_validate(options)
    return Source(open_raster(path, wanted, config), config, tuple(0.5 + index / 10 for index in range(wanted)))


AREA = Area(3, 5, 4, 7)
WINDOW = (slice(3, 7), slice(5, 12))


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_axis_as_long_as_the_channels_is_theirs(save: Save, order: Any) -> None:
    pixels = numbers(20, 30, 4)
    for stored in (pixels, pixels.transpose(2, 0, 1)):
        raster = open_raster(save(np.array(stored, order=order)), 4)
        assert raster.size == (20, 30)
        assert np.array_equal(raster.read(AREA), pixels[WINDOW].transpose(2, 0, 1))
        assert np.array_equal(raster.sampled(8), pixels[::8, ::8].transpose(2, 0, 1))
    grey = open_raster(save(pixels[..., 0]), 1)
    assert np.array_equal(grey.read(AREA)[0], pixels[WINDOW][..., 0])


def test_what_could_be_either_axis_is_refused_unless_it_is_said(save: Save) -> None:
    pixels = numbers(4, 30, 4)
    with pytest.raises(DataError, match=r"\(4, 30, 4\) may be \(H, W, C\) or \(C, H, W\): give layout"):
        open_raster(save(pixels), 4)
    assert open_raster(save(pixels), 4, RasterConfig(layout="chw")).size == (30, 4)
    assert open_raster(save(pixels), 4, RasterConfig(layout="hwc")).size == (4, 30)


def test_channels_are_picked_by_their_numbers(save: Save) -> None:
    pixels = numbers(20, 30, 6)
    config = RasterConfig.model_validate({"channels": "4,0", "layout": "hwc"})
    raster = open_raster(save(pixels), 2, config)
    assert np.array_equal(raster.read(AREA), pixels[WINDOW][..., [4, 0]].transpose(2, 0, 1))
    assert RasterConfig.model_validate({"channels": 3}).channels == (3,)
    with pytest.raises(ValidationError, match="at least 1"):
        RasterConfig(channels=())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, r"\(20, 30, 6\) has no axis of 3 channels, which the model takes; .*channels: 0,1,2 and layout: hwc"),
        ({"layout": "hwc"}, "the model takes 3 channels, and it has 6"),
        ({"channels": (0, 1, 2)}, "from which axis"),
        ({"channels": (0, 1), "layout": "hwc"}, "the model takes 3 channels, and picked are 2"),
        ({"channels": (0, 1, 6), "layout": "hwc"}, r"channels \[0, 1, 6\] are asked for, and it has 6"),
    ],
)
def test_other_channels_than_the_models_are_refused(save: Save, options: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        open_raster(save(numbers(20, 30, 6)), 3, RasterConfig(**options))


@pytest.mark.parametrize(
    ("dtype", "given", "scale"),
    [
        (np.uint8, None, 255),
        (np.uint16, None, 65535),
        (np.uint16, 10_000, 10_000),
        (np.int16, 100, 100),
        (np.float32, None, 1),
        (np.float64, 50, 50),
    ],
)
def test_values_are_divided_by_the_scale(save: Save, dtype: Any, given: float | None, scale: float) -> None:
    pixels = numbers(20, 30, 3, dtype=dtype)
    found, missing = source(save(pixels), 3, scale=given).read(AREA)
    assert not missing.any()
    assert torch.equal(found, torch.from_numpy(pixels[WINDOW].astype(np.float32)).permute(2, 0, 1) / scale)


def test_a_type_that_says_no_scale_asks_for_one(save: Save) -> None:
    with pytest.raises(DataError, match="int32 doesn't say how large values get: give scale"):
        source(save(numbers(20, 30, 3, dtype=np.int32)), 3)
    for kind in (np.bool_, np.complex64):
        with pytest.raises(DataError, match="expected numbers"):
            source(save(numbers(20, 30, 3, dtype=kind)), 3, scale=1)


def test_missing_pixels_are_filled_with_a_number_for_each_channel(save: Save) -> None:
    pixels = numbers(20, 30, 3) + 1
    pixels[4, 6], pixels[5, 7, 1] = 0, 0
    found, missing = source(save(pixels.astype(np.uint8)), 3, nodata=0).read(AREA)
    assert missing.sum() == 1
    assert missing[1, 1]
    assert torch.equal(found[:, 1, 1], torch.tensor([0.5, 0.6, 0.7]))
    assert found[1, 2, 2] == 0
    found, missing = source(save(pixels.astype(np.uint8)), 3, nodata=0, nodata_in="any").read(AREA)
    assert missing.sum() == 2
    assert torch.equal(found[:, 2, 2], torch.tensor([0.5, 0.6, 0.7]))


def test_what_is_no_finite_number_is_missing(save: Save) -> None:
    pixels = numbers(20, 30, 3, dtype=np.float64)
    pixels[4, 6, 0], pixels[5, 7, 2], pixels[6, 8, 1], pixels[3, 5] = np.nan, -np.inf, 1e300, -9999
    found, missing = source(save(pixels), 3, nodata=-9999).read(AREA)
    assert [tuple(place) for place in np.argwhere(missing).tolist()] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert found.isfinite().all()


def test_pictures_are_read_whole(tmp_path: Path) -> None:
    pixels = numbers(20, 30, 3)
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    assert np.array_equal(open_raster(tmp_path / "scene.png", 3).read(AREA), pixels[WINDOW].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.npy", None, "no such file"),
        ("empty.npy", b"", "the file is empty"),
        ("bad.npy", b"nothing", "no array that numpy can read"),
        ("scene.jp2", b"x", "no raster; read are .npy, .tif"),
    ],
)
def test_files_that_are_none_are_named(tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {told}"):
        open_raster(tmp_path / name, 3)


@pytest.mark.parametrize("shape", [(30,), (0, 4, 3), (2, 3, 4, 5)])
def test_arrays_of_other_axes_are_refused(save: Save, shape: Any) -> None:
    with pytest.raises(DataError, match=r"expected \(H, W\), \(H, W, C\) or \(C, H, W\), found"):
        open_raster(save(np.zeros(shape, np.uint8)), 3)


def test_without_rasterio_a_geotiff_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    (tmp_path / "scene.tif").write_bytes(b"II*\0")
    with pytest.raises(UserError, match=r'scene.tif: GeoTIFF needs rasterio: pip install "vitdense\[rasters\]"'):
        open_raster(tmp_path / "scene.tif", 3)

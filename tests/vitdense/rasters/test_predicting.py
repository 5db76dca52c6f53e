"""Predictions of rasters in files: what is written, what a stopped walk goes on with, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from vitdense.contracts import HEADS
from vitdense.data.rasters import Area, Source, open_raster
from vitdense.errors import DataError, UserError
from vitdense.inference import infer
from vitdense.model import Model
from vitdense.rasters.commands import find_rasters, predict_rasters
from vitdense.rasters.predicting import PredictConfig, predict_raster

Save = Callable[..., Path]
Scene = NDArray[np.uint8]


def options(**given: Any) -> PredictConfig:
    return PredictConfig.model_validate(given)


def in_memory(model: Model, path: Path, config: PredictConfig) -> tuple[Tensor, NDArray[np.bool_]]:
    source = Source(open_raster(path, 4, config), config, model.get_buffer("mean").flatten().tolist())
    pixels, missing = source.read(Area(0, 0, *source.size))
    sliding = model.inference.model_copy(update={"mode": "sliding"})
    return infer(model, {"images": pixels[None], "sizes": [source.size]}, sliding)[0], missing


class Stopping:
    """A module's forward that fails after so many calls."""

    def __init__(self, module: nn.Module, calls: int) -> None:
        self.inner, self.left, self.calls = module.forward, calls, 0

    def __call__(self, maps: Tensor) -> Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left, self.calls = self.left - 1, self.calls + 1
        found: Tensor = self.inner(maps)
        return found


def test_the_class_map_is_that_of_the_picture_in_memory(model: Model, scene: Scene, save: Save, tmp_path: Path) -> None:
    scene[:30, 90:] = 0
    path, config = save(scene), options(nodata=0)
    done = predict_raster(model, path, tmp_path / "out", config)
    assert done.result == tmp_path / "out/masks/scene.npy"
    found = np.load(done.result)
    classes, missing = in_memory(model, path, config)
    assert found.dtype == np.uint8
    assert (found[missing] == 255).all()
    assert missing.any()
    assert np.array_equal(found[~missing], classes.numpy()[~missing])
    with Image.open(done.overview) as overview:
        assert overview.width > 500


def test_float_values_with_nan_come_out_as_nothing(model: Model, scene: Scene, save: Save, tmp_path: Path) -> None:
    floats = scene.astype(np.float32) / 255
    floats[5:9, 3, 2] = np.nan
    floats[40, 50:60, 0] = np.inf
    path = save(floats.transpose(2, 0, 1).copy())
    found = np.load(predict_raster(model, path, tmp_path / "out").result)
    classes, missing = in_memory(model, path, options())
    assert missing.sum() == 14
    assert np.array_equal(found == 255, missing)
    assert np.array_equal(found[~missing], classes.numpy()[~missing])


def test_a_raster_without_a_single_pixel_is_all_nothing(model: Model, save: Save, tmp_path: Path) -> None:
    done = predict_raster(model, save(np.zeros((40, 70, 4), np.uint8)), tmp_path / "out", options(nodata=0))
    assert (np.load(done.result) == 255).all()
    assert done.windows == done.skipped > 0


def test_many_classes_take_int16_and_strips(
    make: Callable[..., Model], scene: Scene, save: Save, tmp_path: Path
) -> None:
    model = make(classes=300)
    scene[60:, :10] = 7
    path = save(scene)
    narrow = predict_raster(model, path, tmp_path / "narrow", options(nodata=7, memory_mib=3))
    wide = predict_raster(model, path, tmp_path / "wide", options(nodata=7))
    assert narrow.windows > wide.windows
    found = np.load(narrow.result)
    assert found.dtype == np.int16
    assert found.max() > 255
    assert (found[60:, :10] == -1).all()
    assert np.array_equal(found, np.load(wide.result))


def test_depth_is_in_metres_with_0_where_nothing_was(
    make: Callable[..., Model], scene: Scene, save: Save, tmp_path: Path
) -> None:
    model = make()
    model.head = HEADS.create("linear_depth", {"bins": 8, "norm": "none"}).build(model.backbone.levels)
    scene[:9, :9] = 0
    path, config = save(scene), options(nodata=0)
    done = predict_raster(model.eval(), path, tmp_path / "out", config)
    found = np.load(done.result)
    metres, missing = in_memory(model, path, config)
    assert done.result.parent.name == "depth"
    assert found.dtype == np.float32
    assert (found[missing] == 0).all()
    np.testing.assert_allclose(found[~missing], metres.numpy()[~missing], rtol=0, atol=1e-5)
    assert done.overview.exists()


@pytest.mark.parametrize("calls", [0, 1, 4, 7, 11])
def test_a_stopped_walk_goes_on_and_gives_the_same_bits(
    make: Callable[..., Model],
    scene: Scene,
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: int,
) -> None:
    model, path = make(window_batch=2), save(scene)
    at_once = predict_raster(model, path, tmp_path / "at_once")
    assert at_once.windows == 24  # four rows of six
    kept = model.head.get_submodule("norm")
    stopping = Stopping(kept, calls)
    monkeypatch.setattr(kept, "forward", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict_raster(model, path, tmp_path / "out")
    record = tmp_path / "out/masks/scene.json"
    finished = calls // 3
    assert json.loads(record.read_text())["finished"] == finished
    stopping.left, stopping.calls = 10**6, 0
    done = predict_raster(model, path, tmp_path / "out")
    assert done.windows == 6 * (4 - max(finished - 1, 0))  # the row above reaches into the band to be finished
    assert stopping.calls == done.windows // 2
    assert done.result.read_bytes() == at_once.result.read_bytes()
    assert done.overview.read_bytes() == at_once.overview.read_bytes()
    assert predict_raster(model, path, tmp_path / "out").windows == 0
    assert json.loads(record.read_text())["done"]


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import make_model
from vitdense.rasters import predicting
model = make_model()
slow = predicting.look
def look(*given):
    time.sleep(0.02)
    return slow(*given)
predicting.look = look
predicting.predict_raster(model, Path({path!r}), Path({out!r}))
"""


def test_a_killed_process_loses_nothing(model: Model, save: Save, tmp_path: Path) -> None:
    scene = np.random.default_rng(0).integers(0, 256, (250, 60, 4), dtype=np.uint8)
    path, out = save(scene), tmp_path / "out"
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(path), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code])
    record, deadline = out / "masks" / "scene.json", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if record.exists() and json.loads(record.read_text())["finished"] >= 3:
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = json.loads(record.read_text())["finished"]
    assert 3 <= finished < 12
    done = predict_raster(model, path, out)
    whole = predict_raster(model, path, tmp_path / "whole")
    assert done.windows <= whole.windows - (finished - 1) * 3  # one row of windows reaches into the next band
    assert done.result.read_bytes() == whole.result.read_bytes()


def test_other_settings_than_those_begun_with_are_refused(
    model: Model, scene: Scene, save: Save, tmp_path: Path
) -> None:
    path, record = save(scene), tmp_path / "out/masks/scene.json"
    predict_raster(model, path, tmp_path / "out")
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "done": False, "finished": 2}))
    other = model.inference.model_copy(update={"stride": 16})
    with pytest.raises(
        UserError, match=r"scene.json: .*begun with stride: \[21, 21\], and now it is stride: \[16, 16\]"
    ):
        predict_raster(model, path, tmp_path / "out", inference=other)
    predict_raster(model, path, tmp_path / "out")
    done = predict_raster(model, path, tmp_path / "out", inference=other)  # what is done makes way
    assert done.windows > 0
    record.write_text("{")
    with pytest.raises(UserError, match="no record of a prediction"):
        predict_raster(model, path, tmp_path / "out")


def test_a_raster_that_changed_is_not_gone_on_with(model: Model, scene: Scene, save: Save, tmp_path: Path) -> None:
    path, record = save(scene), tmp_path / "out/masks/scene.json"
    predict_raster(model, path, tmp_path / "out")
    record.write_text(record.read_text().replace('"done": true', '"done": false'))
    np.save(path, scene[::-1])
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="changed: "):
        predict_raster(model, path, tmp_path / "out")


def test_a_disk_without_room_is_told_before_the_walk(
    model: Model, scene: Scene, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"scene.npy: no room for 87 x 130 pixels .*No space left"):
        predict_raster(model, save(scene), tmp_path / "out")
    monkeypatch.undo()
    assert predict_raster(model, save(scene), tmp_path / "out").windows == 24


@pytest.mark.parametrize("given", [{"flip": True}, {"scales": (1.0, 1.5)}, {"short_side": 100}])
def test_several_views_are_refused(model: Model, scene: Scene, save: Save, tmp_path: Path, given: Any) -> None:
    with pytest.raises(UserError, match=f"rasters are read off in windows .* inference.{next(iter(given))}"):
        predict_raster(model, save(scene), tmp_path, inference=model.inference.model_copy(update=given))


def test_heads_of_whole_pictures_are_refused(
    make: Callable[..., Model], scene: Scene, save: Save, tmp_path: Path
) -> None:
    model = make()
    model.head = HEADS.create("classify", {"num_classes": 3}).build_for(model.backbone)
    with pytest.raises(UserError, match="each pixel a class or a depth"):
        predict_raster(model, save(scene), tmp_path)


def test_the_command_names_bad_options_and_files(model: Model, scene: Scene, save: Save, tmp_path: Path) -> None:
    console, path = Console(quiet=True), save(scene)
    for bad, told in (
        ("scale", "expected key=value"),
        ("skale=2", "unknown key, did you mean 'scale'"),
        ("scale=-1", "scale: input should be greater than 0"),
        ("nodata_in=none", "'all' or 'any'"),
    ):
        with pytest.raises(UserError, match=told):
            predict_rasters(model, [path], tmp_path / "out", [bad], console)
    (tmp_path / "bad.npy").write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        predict_rasters(model, [tmp_path / "bad.npy", path], tmp_path / "out", [], console)
    files = [tmp_path / "bad.npy", path]
    done, skipped = predict_rasters(
        model, files, tmp_path / "out", ["channels=0,1,2,3", "layout=hwc"], console, skip_bad=True
    )
    assert [each.result.name for each in done] == ["scene.npy"]
    assert len(skipped) == 1
    assert find_rasters([tmp_path / "out"]) == {tmp_path / "out/masks/scene.npy": "scene"}
    with pytest.raises(UserError, match="another raster is called scene"):
        find_rasters([path, tmp_path / "scene.tif"])

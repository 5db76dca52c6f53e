"""What is walked window by window is what a picture in memory gives."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitdense.data.rasters import Area, RasterConfig, Source, open_raster
from vitdense.errors import UserError
from vitdense.inference import InferenceConfig, infer
from vitdense.inference.dense import look
from vitdense.model import Model
from vitdense.rasters.plan import Plan, make_plan
from vitdense.rasters.streaming import Walk

Save = Callable[..., Path]


class Kept:
    """A head's predict that keeps the logits it is given."""

    def __init__(self, model: Model) -> None:
        self.predict, self.seen = model.head.predict, torch.zeros(0)

    def __call__(self, outputs: dict[str, Tensor], batch: Any) -> Any:
        self.seen = outputs["logits"]
        return self.predict(outputs, batch)


def whole(model: Model, source: Source, monkeypatch: pytest.MonkeyPatch, config: InferenceConfig) -> Any:
    """Classes (H, W) and logits (K, H, W) of the picture in memory."""
    kept = Kept(model)
    monkeypatch.setattr(model.head, "predict", kept)
    pixels, _ = source.read(Area(0, 0, *source.size))
    classes = infer(model, {"images": pixels[None], "sizes": [source.size]}, config)[0]
    monkeypatch.undo()
    return classes, kept.seen[0]


@torch.no_grad()
def walked(model: Model, source: Source, plan: Plan, config: InferenceConfig, finished: int = 0) -> Tensor:
    """Logits (K, H, W), NaN where no window with pixels reaches or where bands were finished."""
    walk = Walk(lambda images: look(model, images), source, plan, config.blend, config.window_batch)
    logits = torch.full((5, *source.size), torch.nan)
    for band in walk.bands(finished):
        if band.maps is not None:
            height, width = band.maps.shape[-2:]
            logits[:, band.top : band.top + height, band.left : band.left + width] = band.maps[0]
    return logits


def sliding(model: Model, **options: Any) -> InferenceConfig:
    return InferenceConfig.model_validate({**model.inference.model_dump(), "mode": "sliding", **options})


def source_of(path: Path, model: Model, **options: Any) -> Source:
    config = RasterConfig.model_validate(options)
    return Source(open_raster(path, 4, config), config, model.get_buffer("mean").flatten().tolist())


@pytest.mark.parametrize("blend", ["gaussian", "uniform"])
@pytest.mark.parametrize(("window", "stride"), [(32, None), ((24, 40), (7, 30)), (300, 64), ((32, 300), 16)])
@pytest.mark.parametrize("strips", [1, 3])
def test_logits_and_classes_are_those_of_the_picture_in_memory(
    model: Model,
    scene: NDArray[np.uint8],
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
    blend: str,
    window: Any,
    stride: Any,
    strips: int,
) -> None:
    config = sliding(model, window=window, stride=stride, blend=blend)
    source = source_of(save(scene), model)
    classes, logits = whole(model, source, monkeypatch, config)
    assert len(classes.unique()) > 2
    plan = make_plan(source.size, config, 5, 64)
    edges = [130 * index // strips for index in range(strips + 1)]
    plan = Plan(plan.size, plan.window, plan.tops, plan.lefts, tuple(pairwise(edges)))
    found = walked(model, source, plan, config)
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)
    assert torch.equal(found.argmax(0).to(classes.dtype), classes)


@pytest.mark.parametrize("finished", [1, 8, 17])
def test_a_walk_that_begins_later_gives_the_same_bits(
    model: Model, scene: NDArray[np.uint8], save: Save, finished: int
) -> None:
    config = sliding(model, stride=11)
    source = source_of(save(scene), model)
    base = make_plan(source.size, config, 5, 64)
    plan = Plan(base.size, base.window, base.tops, base.lefts, ((0, 50), (50, 77), (77, 130)))
    assert plan.bands == 18
    later = walked(model, source, plan, config, finished)
    done = later.isnan()
    assert done.any()
    torch.testing.assert_close(later[~done], walked(model, source, plan, config)[~done], rtol=0, atol=0)
    number = sum(
        int(done[0, plan.rows(band % 6)[0], plan.strips[band // 6][0]]) for band in range(plan.bands)
    )  # bands whose first pixel is untouched
    assert number == finished


def test_windows_that_hold_nothing_are_passed_over_and_change_nothing(
    model: Model, scene: NDArray[np.uint8], save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene[:, 70:] = 0
    scene[:40, :20] = 0
    config = sliding(model)
    source = source_of(save(scene), model, nodata=0)
    pixels, missing = source.read(Area(0, 0, *source.size))
    assert torch.equal(pixels[:, 0, 0], torch.tensor(source.fill))
    classes, logits = whole(model, source, monkeypatch, config)
    plan = make_plan(source.size, config, 5, 64)
    walk = Walk(lambda images: look(model, images), source, plan, config.blend, config.window_batch)
    seen = np.zeros(source.size, bool)
    with torch.no_grad():
        for band in walk.bands():
            rows = slice(band.top, band.top + len(band.missing))
            seen[rows] = True
            assert np.array_equal(band.missing, missing[rows])
            present = torch.from_numpy(~band.missing)
            assert band.maps is not None
            torch.testing.assert_close(band.maps[0][:, present], logits[:, rows][:, present], rtol=0, atol=1e-5)
            assert torch.equal(band.maps[0].argmax(0)[present].to(classes.dtype), classes[rows][present])
    assert seen.all()
    empty = sum(left >= 70 for left in plan.lefts)
    assert walk.skipped == 4 * empty > 0
    later = Walk(lambda images: look(model, images), source, plan, config.blend, config.window_batch)
    with torch.no_grad():
        assert len(list(later.bands(2))) == 2
    assert later.skipped == 2 * empty


def test_every_window_is_told_of(model: Model, scene: NDArray[np.uint8], save: Save) -> None:
    config = sliding(model)
    source = source_of(save(scene), model)
    base = make_plan(source.size, config, 5, 64)
    plan = Plan(base.size, base.window, base.tops, base.lefts, ((0, 61), (61, 130)))
    for finished in (0, 2, 5):
        told: list[int] = []
        walk = Walk(lambda images: look(model, images), source, plan, advance=told.append)
        with torch.no_grad():
            assert len(list(walk.bands(finished))) == plan.bands - finished
        assert sum(told) == plan.windows(finished)


def test_strips_are_as_wide_as_the_memory_allows() -> None:
    config = InferenceConfig(window=512)
    plan = make_plan((20_000, 20_000), config, 150, 1024)
    widest = max(end - first for first, end in plan.strips)
    assert 512 * widest * (151 * 4 + 1) <= 2**30
    assert [first for first, _ in plan.strips[1:]] == [end for _, end in plan.strips[:-1]]
    assert plan.strips[0][0] == 0
    assert plan.strips[-1][1] == 20_000
    assert make_plan((20_000, 20_000), config, 4, 1024).strips == ((0, 20_000),)
    with pytest.raises(UserError, match=r"memory_mib: 100 doesn't hold .* 512 x 512 pixels and 150 .* 152 or more"):
        make_plan((20_000, 20_000), config, 150, 100)
    assert len(make_plan((20_000, 20_000), config, 150, 152).strips) > 1

"""Predictions of rasters: class maps and depth in tiles, with a record to resume from and an overview to look at."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor

from vitdense.contracts import Batch, Predictions
from vitdense.data.rasters import Raster, RasterConfig, Source, open_raster
from vitdense.data.rasters.opening import GEOTIFF
from vitdense.errors import UserError
from vitdense.inference import InferenceConfig
from vitdense.inference.dense import look
from vitdense.model import Model
from vitdense.rasters.overview import draw_overview
from vitdense.rasters.plan import Plan, make_plan
from vitdense.rasters.streaming import Band, Walk
from vitdense.rasters.writing import MappedArray, Record, digest, identity, read_record

AT_ONCE = 2**24
"""Numbers of the output that become classes at a time."""
Tracker = Callable[[Path, int], Callable[[int], None]]
"""A raster and the windows it will take -> what is told of each."""


class PredictConfig(RasterConfig):
    """`memory_mib` is what the sums of windows may take: the wider a raster, and the more classes it has, the more
    strips it is walked in. What a batch of windows takes in the model comes on top."""

    memory_mib: PositiveInt = 1024


@dataclass(frozen=True)
class Done:
    """Where a prediction is; of its windows, how many were looked at this time, and how many in all held nothing."""

    result: Path
    overview: Path
    windows: int
    skipped: int


@dataclass(frozen=True)
class Kind:
    """What a model gives of each pixel: its type, what stands for no prediction, and how many numbers it is made of."""

    folder: str
    dtype: np.dtype[Any]
    nothing: float
    planes: int


def kind_of_rasters(model: Model) -> Kind:
    """Classes in uint8 with 255 for nothing, or int16 with -1 above 255 of them; metres with 0. UserError for models
    that say nothing of each pixel alone."""
    head = model.head
    if head.tasks:
        raise UserError(f"rasters are predicted by one head, this model has {', '.join(head.tasks)}")
    if head.detects or head.segments or head.classifies or head.reads == "vector" or model.takes_clips:
        name = type(head).__name__
        raise UserError(f"rasters are predicted by heads that give each pixel a class or a depth, not by {name}")
    if head.dense == "depth":
        return Kind("depth", np.dtype(np.float32), 0.0, 1)
    if head.num_classes <= 255:
        return Kind("masks", np.dtype(np.uint8), 255, head.num_classes)
    return Kind("masks", np.dtype(np.int16), -1, head.num_classes)


@dataclass(frozen=True)
class Prediction:
    """A model, a raster as the model takes it, in which windows it is looked at, and what comes out."""

    model: Model
    source: Source
    plan: Plan
    inference: InferenceConfig
    kind: Kind

    def walk(self, advance: Callable[[int], None] = lambda count: None) -> Walk:
        """The walk that gives the head's output by pixel in bands."""
        device = self.model.get_buffer("mean").device
        return Walk(
            lambda images: look(self.model, images.to(device)),
            self.source,
            self.plan,
            self.inference.blend,
            self.inference.window_batch,
            device,
            advance,
        )

    @torch.no_grad()
    def write(self, array: MappedArray, record: Record, advance: Callable[[int], None] = lambda count: None) -> None:
        """Predict and write what the record says is not finished; the model is left in the mode that it was in."""
        was_training, before, walk = self.model.training, record.skipped, self.walk(advance)
        self.model.eval()
        try:
            for band in walk.bands(record.finished):
                array.write(band.top, band.left, self.read_off(band))
                record.finished, record.skipped = band.number + 1, before + walk.skipped
                record.save()
                del band  # it would keep the sums of one strip in memory beside those of the next
        finally:
            self.model.train(was_training)

    def read_off(self, band: Band) -> NDArray[Any]:
        """(h, w) of what the head makes of a band, some rows at a time."""
        head, (height, width) = self.model.head, band.missing.shape
        found = np.full((height, width), self.kind.nothing, self.kind.dtype)
        if band.maps is None:
            return found
        rows = max(AT_ONCE // (self.kind.planes * width), 1)
        for top in range(0, height, rows):
            part = band.maps[:, :, top : top + rows]
            batch: Batch = {"sizes": [(part.shape[2], width)]}
            predicted: Predictions = head.predict({head.dense or "logits": part}, batch)
            values: Tensor = predicted[0].cpu()
            present = ~band.missing[top : top + rows]
            found[top : top + rows][present] = values.numpy()[present]
        return found


def predict_raster(
    model: Model,
    path: Path,
    out: Path,
    config: PredictConfig | None = None,
    *,
    name: str | None = None,
    inference: InferenceConfig | None = None,
    track: Tracker = lambda path, windows: lambda count: None,
) -> Done:
    """Write out/masks/NAME.npy (.tif of a GeoTIFF, and out/depth of depth), and out/overlays/NAME.jpg.

    NAME.json beside it is the record of what is finished: a walk that was stopped goes on there, with the same result.
    """
    config, inference = config or PredictConfig(), inference or model.inference
    kind = kind_of_rasters(model)
    _check_views(inference)
    raster = open_raster(path, len(model.backbone.mean), config)
    source = Source(raster, config, model.get_buffer("mean").flatten().tolist())
    plan = make_plan(raster.size, inference, kind.planes, config.memory_mib)
    prediction = Prediction(model, source, plan, inference, kind)
    name = name or path.stem
    array = MappedArray(out / kind.folder / f"{name}.npy")
    result = array.path.with_suffix(".tif") if path.suffix.lower() in GEOTIFF else array.path
    overview = out / "overlays" / f"{name}.jpg"
    record = read_record(array.path.with_suffix(".json"), made_of(model, raster, config, inference, plan))
    if record.done and result.exists() and overview.exists():
        return Done(result, overview, 0, record.skipped)
    if record.done or not array.fits(raster.size, kind.dtype):
        record = Record(record.path, record.made_of)
        array.create(raster.size, kind.dtype)
        record.save()
    windows = plan.windows(record.finished)
    prediction.write(array, record, track(path, windows))
    draw_overview(source, array.read(), kind.nothing, model, overview)
    if result != array.path:
        from vitdense.data.rasters.geotiff import write_geotiff

        write_geotiff(result, array.read(), raster.georeference, kind.nothing)
    record.done = True
    record.save()
    if result != array.path:
        array.path.unlink()
    return Done(result, overview, windows, record.skipped)


def made_of(
    model: Model, raster: Raster, config: RasterConfig, inference: InferenceConfig, plan: Plan
) -> dict[str, Any]:
    """All that a prediction depends on: a walk goes on only with the same."""
    _, stride = inference.window_and_stride()
    return {
        **identity(raster.path),
        "size": raster.size,
        "options": config.model_dump(exclude={"memory_mib"}),
        "window": plan.window,
        "stride": stride,
        "blend": inference.blend,
        "window_batch": inference.window_batch,
        "strips": plan.strips,
        "model": digest(model, model.get_buffer("mean"), model.get_buffer("std")),
        "device": model.get_buffer("mean").device.type,
    }


def _check_views(inference: InferenceConfig) -> None:
    """A raster is looked at once, at its own size."""
    asked = {
        "scales": inference.scales != (1.0,),
        "flip": inference.flip,
        "short_side": inference.short_side is not None,
        "long_max": inference.long_max is not None,
        "size": inference.size is not None,
    }
    if any(asked.values()):
        told = ", ".join(f"inference.{name}" for name, given in asked.items() if given)
        raise UserError(
            f"rasters are read off in windows at their own size, unlike what {told} asks for: set scales=[1.0], "
            "flip=false, and short_side, long_max and size to null"
        )

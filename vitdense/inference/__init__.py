"""From a model to predictions at any picture's size: whole, in windows, at several scales, flipped."""

from typing import cast

import torch

from vitdense.contracts import Batch, Predictions
from vitdense.inference.blending import blend_weights
from vitdense.inference.config import InferenceConfig, ModelOfTasks, PredictingModel, fit, window_starts
from vitdense.inference.dense import only_view, read_off
from vitdense.inference.detection import detect
from vitdense.inference.views import look_at_views

__all__ = ["InferenceConfig", "PredictingModel", "blend_weights", "fit", "infer", "window_starts"]


@torch.no_grad()
def infer(model: PredictingModel, batch: Batch, config: InferenceConfig) -> Predictions:
    """One prediction for each of batch["images"] (B, C, H, W) or (B, C, T, H, W), at batch["sizes"]; of several views
    of each one for all."""
    if model.head.tasks:
        return _each_task(model, batch, config)
    if model.head.detects or model.head.segments:
        return detect(model, batch, config)
    if model.head.reads != "maps" and model.head.dense is None:
        return model.head.predict(look_at_views(model, batch, config), batch)
    return read_off(model, batch, config)


def _each_task(model: PredictingModel, batch: Batch, config: InferenceConfig) -> Predictions:
    """{task: prediction} for each picture, each as its head alone gives it; of one view in one pass."""
    several = cast(ModelOfTasks, model)
    if _one_view(batch, config):
        found = _in_one_pass(model, batch, config)
    else:
        found = {name: infer(several.alone(name), batch, config) for name in model.head.tasks}
    return [dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True)]


def _one_view(batch: Batch, config: InferenceConfig) -> bool:
    """Whether all heads look at the same: pictures as they are or resized, without padding."""
    whole = config.mode == "whole" and len(config.scales) == 1 and not config.flip
    return whole and "extents" not in batch and batch.get("views", 1) == 1


def _in_one_pass(model: PredictingModel, batch: Batch, config: InferenceConfig) -> dict[str, Predictions]:
    view = only_view(batch, config)
    outputs, found = model(view), {}
    for name, head in model.head.tasks.items():
        # Boxes and segments are of the images that were looked at, maps are resized from them at once.
        seen = view if head.detects or head.segments else batch
        found[name] = head.predict(model.head.outputs_of(name, outputs), seen)
    return found

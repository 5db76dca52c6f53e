"""From a model to predictions at any picture's size: whole, in windows, at several scales, flipped."""

from typing import cast

import torch

from vitdense.contracts import Batch, Predictions
from vitdense.inference.blending import blend_weights
from vitdense.inference.config import InferenceConfig, ModelOfTasks, PredictingModel, fit, window_starts
from vitdense.inference.dense import read_off
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
    """{task: prediction} for each picture, each as its head alone gives it."""
    several = cast(ModelOfTasks, model)
    found = {name: infer(several.alone(name), batch, config) for name in model.head.tasks}
    return [dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True)]

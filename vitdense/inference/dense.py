"""Heads with an output by pixel, of a picture, a frame or a voxel: whole or in blended sliding windows, at several
scales and flips."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vitdense.contracts import Batch, Outputs, Predictions
from vitdense.errors import UserError
from vitdense.inference.blending import Canvas, blend_weights
from vitdense.inference.config import InferenceConfig, PredictingModel, fit, resize_images, window_starts
from vitdense.inference.volumes import slide_over_volume, to_size
from vitdense.ops.resizing import full_precision, resize


def read_off(model: PredictingModel, batch: Batch, config: InferenceConfig) -> Predictions:
    """One prediction for each of batch["images"] (B, C, H, W) or (B, C, T, H, W), at batch["sizes"].

    Pictures, or the frames of clips, are resized bilinearly with antialiasing, as floats. One view's outputs reach the
    head as they are; of several views the class probabilities are averaged at the size of batch["images"], as
    mmsegmentation does, and depth as it is: a picture's scale says nothing of its metres.
    """
    name = _dense(model)
    images = batch["images"]
    height, width = images.shape[-2:]
    views = [(scale, flipped) for scale in config.scales for flipped in ((False, True) if config.flip else (False,))]
    if len(views) == 1:
        view = only_view(batch, config)
        outputs: Outputs = model(view) if config.mode == "whole" else {name: _slide(model, view, config)}
        return model.head.predict(outputs, batch)
    total: Tensor | None = None
    for scale, flipped in views:
        resized = resize_images(images, fit((height, width), config, scale))
        view = {**batch, "images": resized.flip(-1) if flipped else resized}
        maps = _whole(model, view) if config.mode == "whole" else _slide(model, view, config)
        maps = _at_size_of(images, maps.flip(-1) if flipped else maps)
        maps = maps.softmax(dim=1) if name == "logits" else maps
        total = maps if total is None else total + maps
    assert total is not None
    mean = total / len(views)
    if name == "logits":
        mean = mean.clamp_min_(torch.finfo(mean.dtype).tiny).log_()  # log of 0 would poison neighbours when resized
    return model.head.predict({name: mean}, batch)


def only_view(batch: Batch, config: InferenceConfig) -> Batch:
    """The batch with its images resized as `config` says, for heads that read their outputs themselves."""
    images = batch["images"]
    own = (images.shape[-2], images.shape[-1])
    resized = resize_images(images, fit(own, config, config.scales[0]))
    return {**batch, "images": resized, "lean": all(size == own == resized.shape[-2:] for size in batch["sizes"])}


def _dense(model: PredictingModel) -> str:
    """The output by pixel; heads that name none are asked for logits."""
    return model.head.dense or "logits"


def _at_size_of(images: Tensor, maps: Tensor) -> Tensor:
    """maps: (B, K, h, w) or (B, K, t, h, w) at the size of images."""
    if maps.ndim == 5:
        return to_size(maps, (images.shape[2], images.shape[3], images.shape[4]))
    return resize(maps, (images.shape[-2], images.shape[-1]))


def _slide(model: PredictingModel, batch: Batch, config: InferenceConfig) -> Tensor:
    """batch["images"]: (B, C, H, W), or pairs (B, C, 2, H, W) to compare -> the output by pixel (B, K, H, W), each the
    weighted mean of all windows; so of clips and volumes, with one axis more."""
    images = batch["images"]
    if images.ndim == 5 and not model.head.compares:
        return slide_over_volume(lambda crops: _whole(model, {"images": crops}), images, config)
    height, width = images.shape[-2:]
    (tall, wide), stride = config.window_and_stride()
    size = (min(tall, height), min(wide, width))
    canvas = Canvas((height, width), blend_weights(config.blend, size).to(images.device))
    for places in _groups(window_starts(height, size[0], stride[0]), window_starts(width, size[1], stride[1]), config):
        crops = [images[..., top : top + size[0], left : left + size[1]] for top, left in places]
        for place, window in zip(places, look(model, torch.cat(crops)).chunk(len(places)), strict=True):
            canvas.add(window, place)
    mean = canvas.mean(height)
    assert mean is not None
    return mean


def look(model: PredictingModel, images: Tensor) -> Tensor:
    """images: (B, C, h, w) of windows -> the output by pixel (B, K, h, w), in fp32 or better."""
    return resize(_whole(model, {"images": images}), (images.shape[-2], images.shape[-1]))


def _groups(tops: list[int], lefts: list[int], config: InferenceConfig) -> Iterator[list[tuple[int, int]]]:
    places = [(top, left) for top in tops for left in lefts]
    for start in range(0, len(places), config.window_batch):
        yield places[start : start + config.window_batch]


def _whole(model: PredictingModel, batch: Batch) -> Tensor:
    """The output by pixel (B, K, h, w), or (B, K, t, h, w), in fp32 or better, at the head's own stride."""
    outputs, name = model(batch), _dense(model)
    if name not in outputs or outputs[name].ndim != batch["images"].ndim - model.head.compares:
        given = {name: tuple(value.shape) for name, value in outputs.items()}
        raise UserError(
            f"windows, several scales and flips need a head that gives {name} (B, K, h, w), this one gives {given}; "
            "set mode: whole, scales: [1.0], flip: false"
        )
    return full_precision(outputs[name])

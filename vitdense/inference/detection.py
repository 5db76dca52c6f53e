"""Heads that find things, or things and stuff: whole pictures, windows for small things in large pictures, several
scales and flips."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import Batch, Detections, Predictions
from vitdense.errors import UserError
from vitdense.inference.config import InferenceConfig, PredictingModel, fit, resize_images, window_starts

_EDGE = 2.0
"""So many pixels from a window's inner edge, a box counts as cut."""


def detect(model: PredictingModel, batch: Batch, config: InferenceConfig) -> Predictions:
    """Things in each of batch["images"] (B, C, H, W), whose boxes are in pixels of batch["sizes"].

    One view's things are the head's. Those of several views (windows and the whole picture, scales, flips) are put
    together: of things of one class that overlap by more than `merge_overlap` of the smaller, the surest stays, and one
    that a window's edge may have cut makes way for one that is whole. Segments, which share out the pixels, are found
    in one view.
    """
    pictures = _pictures(batch)
    if config.mode == "whole" and len(config.scales) == 1 and not config.flip:
        return _look(model, [_resized(picture, config, config.scales[0]) for picture in pictures], batch["sizes"])
    if model.head.segments:
        raise UserError("segments are found in whole pictures: set mode: whole, scales: [1.0], flip: false")
    return [
        _gather(list(_views(model, picture, size, config)), config)
        for picture, size in zip(pictures, batch["sizes"], strict=True)
    ]


@dataclass(frozen=True)
class _Seen:
    """What one view gave, in pixels of the picture, and which of it (n,) may be cut by a window's edge."""

    found: Detections
    cut: Tensor


def _pictures(batch: Batch) -> list[Tensor]:
    """Each picture (C, h, w) without its padding."""
    images = batch["images"]
    if "extents" not in batch:
        return list(images)
    extents = batch["extents"].tolist()
    return [image[:, :height, :width] for image, (height, width) in zip(images, extents, strict=True)]


def _resized(picture: Tensor, config: InferenceConfig, scale: float) -> Tensor:
    size = (picture.shape[-2], picture.shape[-1])
    return resize_images(picture[None], fit(size, config, scale))[0]


def _look(model: PredictingModel, pictures: list[Tensor], sizes: list[tuple[int, int]]) -> Predictions:
    """Pictures (C, h, w) in one batch, padded to a common size."""
    extents = [tuple(picture.shape[-2:]) for picture in pictures]
    height, width = (max(side) for side in zip(*extents, strict=True))
    batch = Batch(sizes=list(sizes))
    if set(extents) != {(height, width)}:
        batch["extents"] = torch.tensor(extents, device=pictures[0].device)
        pictures = [F.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2])) for each in pictures]
    if len({each.dtype for each in pictures}) > 1:  # those that were resized are floats in [0, 1] by now
        pictures = [each if each.is_floating_point() else each.float() / 255 for each in pictures]
    batch["images"] = torch.stack(pictures)
    return model.head.predict(model(batch), batch)


def _views(model: PredictingModel, picture: Tensor, size: tuple[int, int], config: InferenceConfig) -> Iterator[_Seen]:
    """The whole picture at every scale and flip, and its windows where they are asked for."""
    for scale in config.scales:
        resized = _resized(picture, config, scale)
        for flipped in (False, True) if config.flip else (False,):
            view = resized.flip(-1) if flipped else resized
            seen = [_all(_look(model, [view], [size])[0])]
            if config.mode == "sliding":
                seen += _windows(model, view, size, config)
            yield from (_mirrored(each, size[1]) if flipped else each for each in seen)


def _all(found: Detections) -> _Seen:
    return _Seen(found, torch.zeros(len(found), dtype=torch.bool, device=found.scores.device))


def _mirrored(seen: _Seen, width: int) -> _Seen:
    found = seen.found
    x0, y0, x1, y1 = found.boxes.unbind(-1)
    boxes = torch.stack([width - x1, y0, width - x0, y1], dim=-1)
    masks = None if found.masks is None else found.masks.flip(-1)
    return _Seen(replace(found, boxes=boxes, masks=masks), seen.cut)


def _windows(model: PredictingModel, view: Tensor, size: tuple[int, int], config: InferenceConfig) -> Iterator[_Seen]:
    """What each window of a view (C, h, w) gives, in pixels of the picture of `size`; none where one window is all."""
    height, width = view.shape[-2:]
    (tall, wide), stride = config.window_and_stride()
    tall, wide = min(tall, height), min(wide, width)
    if (tall, wide) == (height, width):
        return
    places = [
        (top, left) for top in window_starts(height, tall, stride[0]) for left in window_starts(width, wide, stride[1])
    ]
    for start in range(0, len(places), config.window_batch):
        group = places[start : start + config.window_batch]
        windows = [view[:, top : top + tall, left : left + wide] for top, left in group]
        for place, found in zip(group, _look(model, windows, [(tall, wide)] * len(group)), strict=True):
            yield _placed(found, place, (tall, wide), (height, width), size)


def _placed(
    found: Detections, place: tuple[int, int], window: tuple[int, int], view: tuple[int, int], size: tuple[int, int]
) -> _Seen:
    """Things of a window at `place` (top, left) of a view -> in pixels of the picture of `size`."""
    (top, left), (tall, wide), (height, width) = place, window, view
    x0, y0, x1, y1 = found.boxes.unbind(-1)
    cut = ((x0 < _EDGE) & (left > 0)) | ((y0 < _EDGE) & (top > 0))
    cut |= ((x1 > wide - _EDGE) & (left + wide < width)) | ((y1 > tall - _EDGE) & (top + tall < height))
    shift = found.boxes.new_tensor([left, top, left, top])
    scale = found.boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    masks = found.masks
    if masks is not None:
        masks = F.pad(masks, (left, width - left - wide, top, height - top - tall))
        masks = F.interpolate(masks[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0
    return _Seen(replace(found, boxes=(found.boxes + shift) * scale, masks=masks), cut)


def _gather(seen: list[_Seen], config: InferenceConfig) -> Detections:
    """All views' things without the double ones, best first, as many as the view with the most."""
    most = max(len(each.found) for each in seen)
    boxes = torch.cat([each.found.boxes for each in seen])
    scores, labels = (torch.cat([getattr(each.found, name) for each in seen]) for name in ("scores", "labels"))
    masks = [each.found.masks for each in seen if each.found.masks is not None]
    everything = Detections(boxes, scores, labels, torch.cat(masks) if masks else None)
    whole = ~torch.cat([each.cut for each in seen])
    kept = everything[suppress(boxes, scores + 2 * whole, labels, config.merge_overlap)]
    return kept[kept.scores.argsort(descending=True, stable=True)[:most]]


def suppress(boxes: Tensor, ranks: Tensor, labels: Tensor, overlap: float) -> Tensor:
    """boxes: (N, 4) xyxy, ranks: (N,), labels: (N,) -> indices of those that stay, highest rank first: one goes where
    it shares more than `overlap` of the smaller's area with one of its class that stays.
    """
    order = ranks.argsort(descending=True, stable=True)
    corners, kinds = boxes[order].cpu(), labels[order].cpu()
    low, high = corners[:, :2], corners[:, 2:]
    sides = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp_min(0)  # (N, N, 2)
    areas = (high - low).clamp_min(0).prod(-1)
    smaller = torch.minimum(areas[:, None], areas).clamp_min(torch.finfo(areas.dtype).tiny)
    double = (sides.prod(-1) / smaller > overlap) & (kinds[:, None] == kinds)
    stays = torch.ones(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if stays[index]:
            stays[index + 1 :] &= ~double[index, index + 1 :]
    return order[stays.to(order.device)]

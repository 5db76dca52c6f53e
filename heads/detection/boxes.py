"""Boxes as detectors think of them, (centre x, centre y, width, height) in 0..1, and how well two of them agree."""

import torch
from torch import Tensor


def to_corners(boxes: Tensor) -> Tensor:
    """boxes: (..., 4) as (cx, cy, w, h) -> (..., 4) as (x0, y0, x1, y1)."""
    centres, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def to_centres(boxes: Tensor) -> Tensor:
    """boxes: (..., 4) as (x0, y0, x1, y1) -> (..., 4) as (cx, cy, w, h)."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)


def inverse_sigmoid(boxes: Tensor, least: float = 1e-5) -> Tensor:
    """boxes: (..., 4) in 0..1 -> (..., 4): what a sigmoid makes them of; sides of 0 and 1 become finite."""
    return (boxes.clamp(least, 1) / (1 - boxes).clamp(least, 1)).log()


def overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """one, other: (..., 4) as (x0, y0, x1, y1), shapes that broadcast -> IoU (...) and generalised IoU (...).

    Generalised IoU: Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630. Where two boxes have no area, both are 0
    above the share of the box around them.
    """
    x0, y0, x1, y1 = one.unbind(-1)
    u0, v0, u1, v1 = other.unbind(-1)
    shared = (torch.minimum(x1, u1) - torch.maximum(x0, u0)).clamp_min(0)
    shared = shared * (torch.minimum(y1, v1) - torch.maximum(y0, v0)).clamp_min(0)
    union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared
    around = (torch.maximum(x1, u1) - torch.minimum(x0, u0)) * (torch.maximum(y1, v1) - torch.minimum(y0, v0))
    least = torch.finfo(union.dtype).tiny
    iou = shared / union.clamp_min(least)
    return iou, iou - (around - union) / around.clamp_min(least)

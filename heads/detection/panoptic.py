"""One map of a picture's things and stuff from a mask for each query (Kirillov et al. 2019,
https://arxiv.org/abs/1801.00868; merged as by DETR, Carion et al. 2020, https://arxiv.org/abs/2005.12872)."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitdense.ops.resizing import full_precision, resize

NOTHING = -1
"""What a map says where no segment is."""


@dataclass(frozen=True)
class Segment:
    """One thing, or all stuff of a class: its number in the map, its class index, and its surest query's score."""

    id: int
    label: int
    fused: bool
    score: float


@dataclass(frozen=True)
class Panoptic:
    """`segments` (H, W) int32 holds the id of a segment, or NOTHING where the picture has none at all; 0 where no
    query that stayed was the strongest."""

    segments: Tensor
    infos: tuple[Segment, ...]


@torch.no_grad()
def panoptic(
    logits: Tensor,
    masks: Tensor,
    size: tuple[int, int],
    *,
    scores: Literal["softmax", "sigmoid"] = "softmax",
    fused: Collection[int] = (),
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_threshold: float = 0.8,
) -> Panoptic:
    """logits: (Q, K) and masks: (Q, h, w) of one picture -> its segments at `size`.

    Queries surer than `threshold` share out the pixels: each goes to the largest product of score and mask. A query
    stays if that leaves it more than `overlap_threshold` of the pixels that its mask alone would have had, by
    `mask_threshold`. Those of a class in `fused` are one segment.
    """
    chances, labels = _best(full_precision(logits), scores)
    kept = chances > threshold
    if scores == "softmax":
        kept &= labels != logits.shape[-1] - 1
    chances, labels = chances[kept], labels[kept]
    if not len(chances):
        return Panoptic(torch.full(size, NOTHING, dtype=torch.int32, device=logits.device), ())
    weighted = resize(full_precision(masks)[kept].sigmoid()[None], size)[0] * chances[:, None, None]
    owners = weighted.argmax(0)  # (H, W)
    areas = torch.bincount(owners.flatten(), minlength=len(chances)).tolist()
    alone = (weighted >= mask_threshold).sum((1, 2)).tolist()
    numbers: list[int] = []  # the id that each query's pixels get
    found: list[Segment] = []
    for area, whole, label, chance in zip(areas, alone, labels.tolist(), chances.tolist(), strict=True):
        if not area or not whole or not area / whole > overlap_threshold:
            numbers.append(0)
            continue
        same = [i for i, each in enumerate(found) if each.fused and each.label == label]
        if same:
            old = found[same[0]]
            found[same[0]] = Segment(old.id, label, True, max(old.score, chance))
            numbers.append(old.id)
        else:
            found.append(Segment(len(found) + 1, label, label in fused, chance))
            numbers.append(len(found))
    table = torch.tensor(numbers, dtype=torch.int32, device=owners.device)
    return Panoptic(table[owners], tuple(found))


def _best(logits: Tensor, scores: Literal["softmax", "sigmoid"]) -> tuple[Tensor, Tensor]:
    """logits: (Q, K) -> each query's best score and its class."""
    chances = logits.softmax(-1) if scores == "softmax" else logits.sigmoid()
    best, labels = chances.max(-1)
    return best, labels

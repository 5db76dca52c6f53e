"""Contrastive denoising: queries made of targets with noise, which learn what they were made of (DN-DETR, Li et al.
2022, https://arxiv.org/abs/2203.01305; DINO, Zhang et al. 2022, https://arxiv.org/abs/2203.03605)."""

from dataclasses import dataclass

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from heads.detection.boxes import to_centres, to_corners
from heads.detection.matching import Matches
from heads.detection.targets import Targets
from vitdense.registry import Config


class DenoisingConfig(Config):
    """`queries` by which groups are counted (0 leaves them out); half of `label_noise` is the chance of another class;
    `box_noise` is how far a corner moves, in halves of the box's sides, negatives once as far again.
    """

    queries: NonNegativeInt = 100
    label_noise: float = Field(default=0.5, ge=0, le=2)
    box_noise: NonNegativeFloat = 1.0


@dataclass(frozen=True)
class Denoising:
    """D queries of each of B pictures: labels (B, D) int64, num_classes where there is nothing, and boxes (B, D, 4) as
    (cx, cy, w, h) in 0..1. visible (D + Q, D + Q) bool says which of all queries, these first, a row may look at.
    """

    labels: Tensor
    boxes: Tensor
    visible: Tensor

    def __len__(self) -> int:
        return self.labels.shape[1]


def count_groups(targets: Targets, config: DenoisingConfig) -> int:
    """How often each target is there, once as a positive and once as a negative; at least once, 0 without targets."""
    most = max(targets.counts, default=0)
    return max(1, config.queries // most) if most else 0


def denoise(targets: Targets, config: DenoisingConfig, *, num_classes: int, num_queries: int) -> Denoising:
    """Noisy queries before `num_queries` others; none of them (D = 0) where no picture has a target.

    G groups of 2 * m queries, m the most targets of a picture: m positives, then m negatives. Random numbers are drawn
    as transformers does, so that one seed gives both the same.
    """
    groups, most = count_groups(targets, config), max(targets.counts, default=0)
    device, size = targets.labels.device, (len(targets.counts), most)
    labels = torch.full(size, num_classes, device=device)
    boxes = targets.boxes.new_zeros(*size, 4)
    place = (targets.pictures, _slots(targets))
    labels[place], boxes[place] = targets.labels, targets.boxes
    labels, boxes = labels.repeat(1, 2 * groups), boxes.repeat(1, 2 * groups, 1)  # (B, G * 2 * m, ...)
    if config.label_noise > 0:
        labels = _other_labels(labels, config.label_noise / 2, num_classes)
    if config.box_noise > 0:
        negative = torch.arange(labels.shape[1], device=device) // max(most, 1) % 2
        boxes = _moved(boxes, negative[:, None], config.box_noise)
    return Denoising(labels, boxes, _visible(groups, 2 * most, num_queries, device))


def denoising_matches(targets: Targets, config: DenoisingConfig, *, layers: int) -> Matches:
    """Which query of `denoise` is which target: the positives of all groups, the same in each layer."""
    groups, most = count_groups(targets, config), max(targets.counts, default=0)
    firsts = torch.arange(groups, device=targets.labels.device)[:, None] * (2 * most)
    queries = (firsts + _slots(targets)).flatten()  # (G * N,)
    wanted = torch.arange(len(targets.labels), device=queries.device).repeat(groups)
    return Matches(targets.pictures.repeat(groups), queries.expand(layers, -1), wanted.expand(layers, -1))


def _slots(targets: Targets) -> Tensor:
    """(N,) int64: the number of each target in its picture."""
    return torch.tensor(
        [slot for count in targets.counts for slot in range(count)], dtype=torch.int64, device=targets.labels.device
    )


def _other_labels(labels: Tensor, chance: float, num_classes: int) -> Tensor:
    """labels: (B, D) -> the same with some replaced by any class; those that stand for nothing stay."""
    changed = torch.rand(labels.shape, dtype=torch.float32, device=labels.device) < chance
    others = torch.randint(0, num_classes, labels.shape, dtype=torch.int32, device=labels.device)
    return torch.where(changed & (labels != num_classes), others.long(), labels)


def _moved(boxes: Tensor, negative: Tensor, scale: float) -> Tensor:
    """boxes: (B, D, 4), negative: (D, 1) of 0 and 1 -> boxes whose corners moved and stayed in the frame."""
    reach = boxes[..., 2:].repeat(1, 1, 2) * 0.5 * scale
    sign = torch.randint(0, 2, boxes.shape, dtype=boxes.dtype, device=boxes.device) * 2 - 1
    share = torch.rand(boxes.shape, dtype=boxes.dtype, device=boxes.device) + negative
    return to_centres((to_corners(boxes) + share * sign * reach).clamp(0, 1))


def _visible(groups: int, group: int, num_queries: int, device: torch.device) -> Tensor:
    """(D + Q, D + Q) bool: all look at the Q others, denoising queries at their own group besides."""
    owners = torch.arange(groups, device=device).repeat_interleave(group, output_size=groups * group)
    owners = torch.cat([owners, owners.new_full((num_queries,), -1)])
    return (owners == -1) | (owners[:, None] == owners)

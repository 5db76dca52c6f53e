"""Losses of matched queries, for all decoder layers at once: a number for each layer."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from heads.detection.boxes import overlaps, to_corners
from heads.detection.matching import Matches
from heads.detection.targets import Targets


def count_targets(targets: Targets) -> Tensor:
    """The number of targets, 1 at least, by which losses are divided: () fp32, the mean over processes."""
    number = torch.tensor(float(len(targets.labels)), device=targets.labels.device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(number)
        number = number / dist.get_world_size()
    return number.clamp_min(1)


def cross_entropy(logits: Tensor, matches: Matches, targets: Targets, *, nothing: float) -> Tensor:
    """logits: (L, B, Q, K + 1), the last class for nothing, which weighs `nothing` -> (L,): weighted means."""
    classes = _class_of_queries(logits, matches, targets, logits.shape[-1] - 1)
    lost = -logits.log_softmax(-1).gather(-1, classes[..., None])[..., 0]  # (L, B, Q)
    weights = torch.ones_like(lost).masked_fill_(classes == logits.shape[-1] - 1, nothing)
    return (lost * weights).sum((1, 2)) / weights.sum((1, 2))


def focal(
    logits: Tensor, matches: Matches, targets: Targets, number: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """logits: (L, B, Q, K) of independent classes -> (L,): sums by target (Lin et al. 2017,
    https://arxiv.org/abs/1708.02002); a negative alpha weighs positives and negatives alike.
    """
    wanted = _one_hot(logits, matches, targets)
    chance = logits.sigmoid()
    missed = torch.where(wanted, 1 - chance, chance)
    lost = F.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="none") * missed**gamma
    if alpha >= 0:
        lost = torch.where(wanted, alpha * lost, (1 - alpha) * lost)
    return lost.sum((1, 2, 3)) / number


def varifocal(
    logits: Tensor,
    boxes: Tensor,
    matches: Matches,
    targets: Targets,
    number: Tensor,
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
) -> Tensor:
    """logits: (L, B, Q, K) that shall be the IoU of boxes (L, B, Q, 4) -> (L,): sums by target (Zhang et al. 2021,
    https://arxiv.org/abs/2008.13367).
    """
    found, wanted_boxes = matches.of(boxes.detach()), targets.boxes[matches.targets]
    iou, _ = overlaps(to_corners(found), to_corners(wanted_boxes.to(found)))
    wanted = torch.zeros_like(logits)
    wanted[_place(matches, targets)] = iou.to(wanted.dtype)
    positive = _one_hot(logits, matches, targets)
    weight = torch.where(positive, wanted, alpha * logits.detach().sigmoid() ** gamma)
    lost = F.binary_cross_entropy_with_logits(logits, wanted, weight=weight, reduction="none")
    return lost.sum((1, 2, 3)) / number


def box_losses(boxes: Tensor, matches: Matches, targets: Targets, number: Tensor) -> tuple[Tensor, Tensor]:
    """boxes: (L, B, Q, 4) as (cx, cy, w, h) -> L1 distance (L,) and 1 - generalised IoU (L,): sums by target."""
    found = matches.of(boxes)  # (L, M, 4)
    wanted = targets.boxes[matches.targets].to(found)
    _, generalised = overlaps(to_corners(found), to_corners(wanted))
    return (found - wanted).abs().sum((1, 2)) / number, (1 - generalised).sum(1) / number


def _class_of_queries(logits: Tensor, matches: Matches, targets: Targets, nothing: int) -> Tensor:
    """(L, B, Q) int64: the class that each query answers for, or `nothing`."""
    classes = torch.full(logits.shape[:-1], nothing, device=logits.device)
    layers = torch.arange(len(logits), device=logits.device)[:, None]
    classes[layers, matches.pictures, matches.queries] = targets.labels[matches.targets]
    return classes


def _one_hot(logits: Tensor, matches: Matches, targets: Targets) -> Tensor:
    """(L, B, Q, K) bool: the class of each matched query."""
    hot = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    hot[_place(matches, targets)] = True
    return hot


def _place(matches: Matches, targets: Targets) -> Any:
    """The indices of each matched query's class in (L, B, Q, K)."""
    layers = torch.arange(len(matches.queries), device=matches.queries.device)[:, None]
    return layers, matches.pictures, matches.queries, targets.labels[matches.targets]

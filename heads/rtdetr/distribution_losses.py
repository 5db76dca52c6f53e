"""What D-FINE's distributions lose: how far they are from where the targets' sides lie, and from the last layer's (Peng
et al. 2024, https://arxiv.org/abs/2410.13842)."""

import torch
from torch import Tensor

from heads.detection.boxes import overlaps, to_corners
from heads.detection.matching import Matches
from heads.detection.targets import Targets


def fine_grained_localisation(
    corners: Tensor,
    origins: Tensor,
    boxes: Tensor,
    matches: Matches,
    targets: Targets,
    number: Tensor,
    values: Tensor,
    reg_scale: float,
) -> Tensor:
    """corners: (L, B, Q, 4, bins + 1), origins: (B, Q, 4), boxes: (L, B, Q, 4) -> (L,): cross entropies of the two
    values (bins + 1,) that a side lies between, weighted by the boxes' IoU; sums by target.
    """
    wanted = to_corners(targets.boxes[matches.targets].to(values))  # (L, M, 4)
    points = matches.of(origins.expand(len(corners), *origins.shape)).to(values)
    left, share = _between(_shifts(points, wanted, reg_scale), values)
    chances = matches.of(corners).log_softmax(-1)  # (L, M, 4, bins + 1)
    near, far = (chances.gather(-1, place[..., None])[..., 0] for place in (left, left + 1))
    lost = -(near * (1 - share) + far * share)
    iou, _ = overlaps(to_corners(matches.of(boxes.detach())), wanted)
    return (lost * iou[..., None]).sum((1, 2)) / number


def decoupled_distillation(
    corners: Tensor,
    teacher: Tensor,
    teacher_logits: Tensor,
    boxes: Tensor,
    matches: Matches,
    targets: Targets,
    temperature: float,
) -> Tensor:
    """corners: (L, B, Q, 4, bins + 1), teacher: (B, Q, 4, bins + 1), the last layer's, with its logits (B, Q, K),
    boxes: (L, B, Q, 4) -> (L,): divergence from the teacher, which learns nothing; matched and other queries count by
    the roots of their numbers.
    """
    ours = (corners / temperature).log_softmax(-1)
    theirs = (teacher.detach() / temperature).log_softmax(-1)
    diverging = (theirs.exp() * (theirs - ours)).sum(-1) * temperature**2  # (L, B, Q, 4)
    weights = teacher_logits.detach().sigmoid().amax(-1).expand(boxes.shape[:3]).clone()  # (L, B, Q)
    wanted = to_corners(targets.boxes[matches.targets].to(boxes))
    iou, _ = overlaps(to_corners(matches.of(boxes.detach())), wanted)
    layers = torch.arange(len(corners), device=corners.device)[:, None]
    weights[layers, matches.pictures, matches.queries] = iou.to(weights.dtype)
    matched = torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
    matched[layers, matches.pictures, matches.queries] = True
    lost = (diverging * weights[..., None]).sum(-1)  # (L, B, Q)
    total, share = lost.new_zeros(len(corners)), lost.new_zeros(len(corners))
    for chosen in (matched, ~matched):
        count = chosen.sum((1, 2)).to(lost.dtype) * 4
        root = (count / lost.shape[1]) ** 0.5
        total = total + (lost * chosen).sum((1, 2)) / count.clamp_min(1) * root
        share = share + root
    return total / share.clamp_min(torch.finfo(share.dtype).tiny)


def _shifts(points: Tensor, wanted: Tensor, reg_scale: float) -> Tensor:
    """points: (..., 4) as (cx, cy, w, h), wanted: (..., 4) as (x0, y0, x1, y1) -> (..., 4): how far each side would
    have to move outwards, in units of a `reg_scale`-th of the box.
    """
    unit = points[..., 2:] / reg_scale + 1e-16
    centres = points[..., :2]
    outwards = torch.cat([(centres - wanted[..., :2]) / unit, (wanted[..., 2:] - centres) / unit], dim=-1)
    return outwards - 0.5 * reg_scale


def _between(shifts: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """shifts: (...), values: (bins + 1,), rising -> the value below each (...) int64, and the share of the next one."""
    last = len(values) - 2
    left = (torch.searchsorted(values, shifts.contiguous(), right=True) - 1).clamp(0, last)
    low, high = values[left], values[left + 1]
    return left, ((shifts - low) / (high - low)).clamp(0, 1)

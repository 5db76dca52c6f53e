"""Which query answers for which target: the cheapest one-to-one assignment in every decoder layer (DETR, Carion et al.
2020, https://arxiv.org/abs/2005.12872)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from heads.detection.boxes import overlaps, to_corners
from heads.detection.targets import Targets
from vitdense.errors import TrainingError
from vitdense.registry import Config

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
_NEVER_LOG_0 = 1e-8


class MatchCosts(Config):
    """What a pair of query and target costs: factors of the class score, the L1 distance of boxes, and their GIoU."""

    label: float = 1.0
    box: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True)
class Matches:
    """The M pairs of each of L layers. As many of a picture in each layer, so that `pictures` (M,) stands for all:
    queries (L, M) and targets (L, M) are indices, those of targets into the batch's row of them.
    """

    pictures: Tensor
    queries: Tensor
    targets: Tensor

    def of(self, tensor: Tensor) -> Tensor:
        """tensor: (L, B, Q, ...) of all queries -> (L, M, ...) of the matched ones."""
        layers = torch.arange(len(self.queries), device=tensor.device)[:, None]
        return tensor[layers, self.pictures, self.queries]

    def at(self, layer: int) -> "Matches":
        """The pairs of one layer, as of a stack of one."""
        return Matches(self.pictures, self.queries[layer, None], self.targets[layer, None])


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    costs: MatchCosts,
    *,
    scores: Literal["softmax", "sigmoid"],
    ids: list[str] | None = None,
) -> Matches:
    """logits: (L, B, Q, K), boxes: (L, B, Q, 4) as (cx, cy, w, h) -> the cheapest pairs of each layer.

    Costs are taken of a picture's own targets only, in float32 at least, and go to the host in one copy. TrainingError
    names the pictures (by `ids`) whose costs are not finite.
    """
    precise = torch.promote_types(logits.dtype, torch.float32)
    table = pair_costs(logits.to(precise), boxes.to(precise), targets, costs, scores=scores).cpu().numpy()  # (L, N, Q)
    pairs = []
    for picture, (start, stop) in enumerate(pairwise(targets.starts)):
        own = table[:, start:stop]
        if not np.isfinite(own).all():
            name = f"picture {picture} of the batch" if ids is None else ids[picture]
            raise TrainingError(f"{name}: scores or boxes of its queries are not finite: the model has diverged")
        found = np.stack([linear_sum_assignment(layer) for layer in own])  # (L, 2, pairs): targets, queries
        pairs.append(found + np.array([[start], [0]]))
    chosen = torch.from_numpy(np.concatenate(pairs, axis=-1)).to(logits.device)  # (L, 2, M)
    pictures = np.repeat(np.arange(len(pairs)), [found.shape[-1] for found in pairs])
    return Matches(torch.from_numpy(pictures).to(logits.device), chosen[:, 1], chosen[:, 0])


def pair_costs(
    logits: Tensor, boxes: Tensor, targets: Targets, costs: MatchCosts, *, scores: Literal["softmax", "sigmoid"]
) -> Tensor:
    """logits: (L, B, Q, K), boxes: (L, B, Q, 4) -> (L, N, Q): what each query of its picture costs a target."""
    own = logits[:, targets.pictures, :, targets.labels].transpose(0, 1)  # (L, N, Q), from (N, L, Q)
    if scores == "softmax":
        total = costs.label * -(own - logits.logsumexp(-1)[:, targets.pictures]).exp()
    else:
        total = costs.label * _focal_cost(own)
    given = boxes[:, targets.pictures]  # (L, N, Q, 4)
    wanted = targets.boxes.to(given)[:, None]  # (N, 1, 4)
    total += costs.box * (given - wanted).abs().sum(-1)
    _, generalised = overlaps(to_corners(given), to_corners(wanted))
    return total.sub_(generalised, alpha=costs.giou)


def _focal_cost(logits: Tensor) -> Tensor:
    """What the focal loss would lose, (...), were the query positive and not negative."""
    chance = logits.sigmoid()
    negative = (1 - FOCAL_ALPHA) * chance**FOCAL_GAMMA * -(1 - chance + _NEVER_LOG_0).log()
    positive = FOCAL_ALPHA * (1 - chance) ** FOCAL_GAMMA * -(chance + _NEVER_LOG_0).log()
    return positive - negative

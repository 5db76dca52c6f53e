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
_PAIRS = 2**16
"""On a CPU costs are taken for so many pairs at once, which stay in its cache."""


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
    table = pair_costs(logits.to(precise), boxes.to(precise), targets, costs, scores=scores).cpu().numpy()
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
    number, pairs = len(targets.labels), logits.shape[0] * logits.shape[2]
    at_once = max(_PAIRS // pairs, 1) if logits.device.type == "cpu" else max(number, 1)
    totals = logits.logsumexp(-1) if scores == "softmax" else None  # (L, B, Q)
    # A plane for each coordinate: the last axis would be read in steps of 4.
    centres, corners = (each.movedim(-1, 0).contiguous() for each in (boxes, to_corners(boxes)))  # (4, L, B, Q)
    table = logits.new_empty(logits.shape[0], number, logits.shape[2])
    for start in range(0, number, at_once):
        some = slice(start, start + at_once)
        pictures = targets.pictures[some]
        own = logits[:, pictures, :, targets.labels[some]].transpose(0, 1)  # (L, n, Q), from (n, L, Q)
        score = _focal_cost(own) if totals is None else -(own - totals[:, pictures]).exp()
        wanted = targets.boxes[some, None].to(boxes)  # (n, 1, 4)
        distance = (centres[:, :, pictures] - wanted.movedim(-1, 0)[:, None]).abs_().sum(0)
        _, generalised = overlaps(corners[:, :, pictures].movedim(0, -1), to_corners(wanted))
        table[:, some] = costs.label * score + costs.box * distance - costs.giou * generalised
    return table


def _focal_cost(logits: Tensor) -> Tensor:
    """What the focal loss would lose, (...), were the query positive and not negative."""
    chance = logits.sigmoid()
    negative = (1 - FOCAL_ALPHA) * chance**FOCAL_GAMMA * -(1 - chance + _NEVER_LOG_0).log()
    positive = FOCAL_ALPHA * (1 - chance) ** FOCAL_GAMMA * -(chance + _NEVER_LOG_0).log()
    return positive - negative

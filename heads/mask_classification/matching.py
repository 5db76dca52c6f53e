"""Which query answers for which mask: the cheapest one-to-one assignment, masks compared at random points (Mask2Former,
Cheng et al. 2022, https://arxiv.org/abs/2112.01527)."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from heads.mask_classification.points import draw_points, read_points
from vitdense.errors import TrainingError
from vitdense.registry import Config


class MaskCosts(Config):
    """What a pair of query and target costs: factors of the class's probability, of the cross-entropy of the masks, and
    of the overlap that they lack."""

    label: float = 2.0
    mask: float = 5.0
    dice: float = 5.0


@torch.no_grad()
def match_masks(
    logits: Tensor, masks: Tensor, labels: Tensor, wanted: Tensor, costs: MaskCosts, *, points: int, name: str
) -> tuple[Tensor, Tensor]:
    """Of one picture and layer: logits (Q, K + 1) and masks (Q, h, w) of queries, labels (N,) and masks (N, H, W) of
    targets, compared at so many `points` -> queries and targets (min(Q, N),), queries ascending.

    TrainingError names the picture where a cost is not finite.
    """
    places = draw_points(1, points, masks.device)
    found = read_points(masks[:, None], places)[:, 0]  # (Q, P)
    true = read_points(wanted[:, None].to(found.dtype), places)[:, 0]  # (N, P)
    table = pair_costs(logits, found, labels, true, costs).cpu().numpy()
    if not np.isfinite(table).all():
        raise TrainingError(f"{name}: scores or masks of its queries are not finite: the model has diverged")
    queries, targets = linear_sum_assignment(table)
    return torch.from_numpy(queries).to(masks.device), torch.from_numpy(targets).to(masks.device)


def pair_costs(logits: Tensor, found: Tensor, labels: Tensor, true: Tensor, costs: MaskCosts) -> Tensor:
    """logits: (Q, K + 1), found: (Q, P) logits of masks, labels: (N,), true: (N, P) in 0..1 -> (Q, N)."""
    label = -logits.softmax(-1)[:, labels]
    shared = found @ true.mT
    mask = (F.softplus(found).sum(1, keepdim=True) - shared) / found.shape[1]  # cross-entropy, of its definition
    chance = found.sigmoid()
    dice = 1 - (2 * (chance @ true.mT) + 1) / (chance.sum(1, keepdim=True) + true.sum(1) + 1)
    return costs.mask * mask + costs.label * label + costs.dice * dice

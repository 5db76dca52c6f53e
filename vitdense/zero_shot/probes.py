"""What frozen features tell of classes: k nearest neighbours and logistic regression."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.errors import UserError
from vitdense.zero_shot.features import Features

PENALTIES = tuple(10.0**power for power in range(-6, 3))
"""What is tried: the mean loss is added to half the penalty times the squared weights."""
ROWS = 1024
"""Pictures that are compared with all of those to learn from at a time."""


def nearest_logits(
    train: Features, vectors: Tensor, num_classes: int, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """vectors (N, C) -> (N, K): the votes of the k nearest by cosine, each exp(cosine / temperature), as DINO's
    authors count them (https://arxiv.org/abs/2104.14294)."""
    _check(train, num_classes)
    known, k = F.normalize(train.vectors, dim=1), min(k, len(train.labels))
    votes = []
    for part in torch.split(F.normalize(vectors, dim=1), ROWS):
        near, which = (part @ known.T).topk(k, dim=1)  # (rows, k)
        weights = (near / temperature).exp()
        votes.append(weights.new_zeros(len(part), num_classes).scatter_add_(1, train.labels[which], weights))
    return torch.cat(votes)


@dataclass(frozen=True)
class LinearProbe:
    """Logits of standardised vectors: weights (K, C), bias (K,); mean and deviation (C,) of those it learnt from."""

    weights: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor
    penalty: float

    def logits(self, vectors: Tensor) -> Tensor:
        """vectors (N, C) -> (N, K)."""
        standard = (vectors.to(self.weights.dtype) - self.mean) / self.deviation
        return standard @ self.weights.T + self.bias


def fit_linear_probe(
    train: Features, num_classes: int, *, penalties: Sequence[float] = PENALTIES, held_out: float = 0.2, seed: int = 0
) -> LinearProbe:
    """Logistic regression, learnt by L-BFGS to its minimum in fp64; of several penalties the one that is best on a part
    that is held out of each class, after which all pictures are learnt from. Of equals the stronger one."""
    _check(train, num_classes)
    if len(penalties) == 1:
        return _fit(train.vectors, train.labels, num_classes, penalties[0])
    held = _part_of_each_class(train.labels, held_out, seed)
    if not held.any():
        raise UserError(
            "no class has two pictures, one to learn from and one to choose the penalty by: give one penalty"
        )
    right = {}
    start: LinearProbe | None = None
    for penalty in sorted(penalties, reverse=True):
        start = _fit(train.vectors[~held], train.labels[~held], num_classes, penalty, start)
        right[penalty] = (start.logits(train.vectors[held]).argmax(1) == train.labels[held]).sum().item()
    best = max(right, key=lambda penalty: (right[penalty], penalty))
    return _fit(train.vectors, train.labels, num_classes, best)


def _fit(
    vectors: Tensor, labels: Tensor, num_classes: int, penalty: float, start: LinearProbe | None = None
) -> LinearProbe:
    """The minimum; `start` is a solution nearby."""
    vectors = vectors.double()
    mean, deviation = vectors.mean(0), vectors.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    standard = (vectors - mean) / deviation
    shape = (num_classes, vectors.shape[1])
    weights = (standard.new_zeros(shape) if start is None else start.weights.clone()).requires_grad_()
    bias = (standard.new_zeros(num_classes) if start is None else start.bias.clone()).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights, bias], max_iter=1000, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(standard @ weights.T + bias, labels) + penalty / 2 * weights.square().sum()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return LinearProbe(weights.detach(), bias.detach(), mean, deviation, penalty)


def _part_of_each_class(labels: Tensor, share: float, seed: int) -> Tensor:
    """(N,) bool: a share of each class, and never all of it."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        own = (labels == label).nonzero()[:, 0]
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        held[own[torch.randperm(len(own), generator=generator)[:count]]] = True
    return held


def _check(train: Features, num_classes: int) -> None:
    if len(train.vectors) != len(train.labels) or not len(train.labels):
        raise UserError(f"{len(train.vectors)} vectors and {len(train.labels)} labels: a probe needs as many, and some")
    if train.labels.min() < 0 or train.labels.max() >= num_classes:
        raise UserError(f"labels must lie in 0..{num_classes - 1}, given {torch.unique(train.labels).tolist()[:8]}")

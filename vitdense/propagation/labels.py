"""Labels of a frame from those of others by the similarity of features, as in DINO (https://arxiv.org/abs/2104.14294,
section 4.2.2) after space-time correspondence (https://arxiv.org/abs/2006.14613)."""

import torch
from torch import Tensor

TILE = 8
"""Cells a side that are looked at together: of all pairs of cells, only those near enough to each other are made."""


def propagate_labels(
    query: Tensor, sources: Tensor, labels: Tensor, *, neighbourhood: int = 12, topk: int = 5, temperature: float = 0.1
) -> Tensor:
    """query: (h, w, C), sources: (N, h, w, C), both of unit length, labels: (N, h, w, K) -> (h, w, K), their mean.

    A cell has the labels of the `topk` cells most similar to it among those no more than `neighbourhood` rows and
    columns away (0: anywhere) in all sources, weighted by exp(similarity / temperature). Where several are as similar
    as the last of them, all of these count.
    """
    height, width = query.shape[:2]
    reach = neighbourhood or max(height, width)
    found = labels.new_empty(height, width, labels.shape[-1])
    for top in range(0, height, TILE):
        near_rows = slice(max(top - reach, 0), top + TILE + reach)
        for left in range(0, width, TILE):
            near_columns = slice(max(left - reach, 0), left + TILE + reach)
            tile = (slice(top, top + TILE), slice(left, left + TILE))
            near = (slice(None), near_rows, near_columns)
            similarity = _similarity(query[tile], sources[near])  # (N, th, tw, nh, nw)
            rows = _near(top, similarity.shape[1], near_rows.start, similarity.shape[3], reach, query)
            columns = _near(left, similarity.shape[2], near_columns.start, similarity.shape[4], reach, query)
            visible = rows[:, None, :, None] & columns[:, None]  # (th, tw, nh, nw)
            weights = _weights(similarity.masked_fill_(~visible, -torch.inf), topk, temperature)
            found[tile] = torch.tensordot(weights, labels[near], dims=3)  # (th, tw, K)
    return found


def _similarity(query: Tensor, sources: Tensor) -> Tensor:
    """query: (th, tw, C), sources: (N, nh, nw, C) -> (N, th, tw, nh, nw)."""
    flat = query.flatten(0, 1) @ sources.flatten(1, 2).mT  # (N, th * tw, nh * nw)
    return flat.unflatten(2, sources.shape[1:3]).unflatten(1, query.shape[:2])


def _near(start: int, count: int, source_start: int, source_count: int, reach: int, like: Tensor) -> Tensor:
    """(count, source_count): whether lines from `start` on lie within reach of those from `source_start` on."""
    lines = torch.arange(start, start + count, device=like.device)
    others = torch.arange(source_start, source_start + source_count, device=like.device)
    return (lines[:, None] - others).abs() <= reach


def _weights(similarity: Tensor, topk: int, temperature: float) -> Tensor:
    """similarity: (N, th, tw, nh, nw), -inf where nothing is seen -> (th, tw, N, nh, nw), summing up to 1 over the
    last three."""
    seen = similarity.movedim(0, 2).flatten(2)  # (th, tw, N * nh * nw)
    best = seen.topk(min(topk, seen.shape[-1]), dim=-1).values
    # The largest taken away before exp changes nothing after the division, and keeps low temperatures finite.
    weights = ((seen - best[..., :1]) / temperature).exp() * (seen >= best[..., -1:])
    shape = (similarity.shape[0], *similarity.shape[3:])
    return (weights / weights.sum(dim=-1, keepdim=True)).unflatten(-1, shape)

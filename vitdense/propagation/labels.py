"""Labels of a frame from those of others by the similarity of features, as in DINO (https://arxiv.org/abs/2104.14294,
section 4.2.2) after space-time correspondence (https://arxiv.org/abs/2006.14613)."""

from collections.abc import Iterator

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
    for rows, near_rows, hidden_rows in _tiles(height, reach, query):
        for columns, near_columns, hidden_columns in _tiles(width, reach, query):
            cells = query[rows, columns].flatten(0, 1)  # (Q, C)
            near = sources[:, near_rows, near_columns]
            hidden = hidden_rows[:, None, :, None] | hidden_columns[:, None]  # (th, tw, nh, nw)
            similarity = cells @ near.flatten(0, 2).mT  # (Q, N * nh * nw)
            similarity.view(len(cells), len(near), -1).masked_fill_(hidden.view(len(cells), 1, -1), -torch.inf)
            given = labels[:, near_rows, near_columns].flatten(0, 2)  # (N * nh * nw, K)
            mean = _weights(similarity, topk, temperature) @ given  # (Q, K)
            found[rows, columns] = mean.view(*hidden.shape[:2], -1)
    return found


def _tiles(length: int, reach: int, like: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Along one side: cells that are looked at together, those within reach of some of them, and of which of them each
    is hidden, being too far away."""
    for start in range(0, length, TILE):
        end, first, last = min(start + TILE, length), max(start - reach, 0), min(start + TILE + reach, length)
        cells, others = (torch.arange(*span, device=like.device) for span in ((start, end), (first, last)))
        yield slice(start, end), slice(first, last), (cells[:, None] - others).abs() > reach


def _weights(similarity: Tensor, topk: int, temperature: float) -> Tensor:
    """similarity: (Q, S), -inf where nothing is seen -> (Q, S), rows that sum up to 1."""
    best = similarity.topk(min(topk, similarity.shape[1]), dim=1).values
    # The largest taken away before exp changes nothing after the division, and keeps low temperatures finite.
    weights = ((similarity - best[:, :1]) / temperature).exp() * (similarity >= best[:, -1:])
    return weights / weights.sum(dim=1, keepdim=True)

"""Losses of masks at some of their points instead of all pixels (PointRend, Kirillov et al. 2020,
https://arxiv.org/abs/1912.08193)."""

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from vitdense.registry import Config


class PointConfig(Config):
    """`count` points of each mask. Of those to learn from, `important` is the share that is taken from the least sure
    of `oversampled` times as many; the others lie anywhere.
    """

    count: PositiveInt = 12_544
    oversampled: float = Field(default=3.0, ge=1.0)
    important: float = Field(default=0.75, ge=0.0, le=1.0)


def read_points(maps: Tensor, points: Tensor) -> Tensor:
    """maps: (N, C, h, w), points: (N or 1, P, 2) as (x, y), 0 and 1 the outer edges -> (N, C, P), bilinear, 0 beyond.

    Points of (1, P, 2) are those of all maps.
    """
    grid = (2.0 * points - 1.0)[:, :, None].to(maps.dtype)  # (N, P, 1, 2)
    if len(grid) != len(maps):
        joined = maps.flatten(0, 1)[None]  # (1, N * C, h, w)
        found = F.grid_sample(joined, grid, align_corners=False)[0, :, :, 0]
        return torch.unflatten(found, 0, (maps.shape[0], maps.shape[1]))
    return F.grid_sample(maps, grid, align_corners=False)[..., 0]


def draw_points(count: int, points: int, device: torch.device) -> Tensor:
    """(count, points, 2) in 0..1, anywhere."""
    return torch.rand(count, points, 2, device=device)


@torch.no_grad()
def draw_uncertain(logits: Tensor, config: PointConfig) -> Tensor:
    """logits: (M, h, w) of masks -> points (M, P, 2), most of them where the mask's edge may be."""
    drawn = draw_points(len(logits), int(config.count * config.oversampled), logits.device)
    unsure = -read_points(logits[:, None], drawn)[:, 0].abs()  # (M, drawn)
    important = int(config.important * config.count)
    chosen = unsure.topk(important, dim=1, sorted=False).indices  # losses are sums: the order is nobody's
    starts = torch.arange(len(drawn), device=drawn.device)[:, None] * drawn.shape[1]
    points = drawn.flatten(0, 1).index_select(0, (chosen + starts).flatten()).view(len(drawn), important, 2)
    if important < config.count:
        points = torch.cat([points, draw_points(len(logits), config.count - important, logits.device)], dim=1)
    return points

"""Where the cells of a map lie: which of them show a picture and no padding, and their sine embedding."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import Batch


def valid_cells(batch: Batch, size: tuple[int, int]) -> Tensor | None:
    """(B, h, w) bool for a map of `size`: whether a cell's nearest pixel belongs to the picture; None where all do."""
    if "extents" not in batch:
        return None
    height, width = batch["images"].shape[-2:]
    extents = batch["extents"]
    rows = torch.arange(height, device=extents.device) < extents[:, :1]  # (B, H)
    columns = torch.arange(width, device=extents.device) < extents[:, 1:]  # (B, W)
    rows, columns = _nearest(rows, size[0]), _nearest(columns, size[1])
    return rows[:, :, None] & columns[:, None]


def _nearest(flags: Tensor, size: int) -> Tensor:
    """flags: (B, n) bool -> (B, size)."""
    return F.interpolate(flags[:, None].float(), size=size, mode="nearest")[:, 0].bool()


def sine_positions(
    valid: Tensor, channels: int, *, centred: bool, temperature: float = 10_000.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """valid: (B, h, w) bool -> (B, channels, h, w) in `dtype`: sines of the row, then of the column, each counted over
    valid cells and divided by their number, so that all pictures reach from 0 to 2 pi.

    DETR counts cells by their far edge; `centred` by their middle, as Deformable DETR does.
    """
    shift, least = (0.5 if centred else 0.0), 1e-6
    parts = []
    for axis in (1, 2):
        count = valid.cumsum(axis, dtype=dtype)
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        parts.append(sines((count - shift) / (last + least) * (2 * math.pi), channels // 2, temperature))
    return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)


def sines(places: Tensor, channels: int, temperature: float = 10_000.0) -> Tensor:
    """places: (...) -> (..., channels): sine and cosine in turns, of ever longer waves."""
    pair = torch.arange(channels // 2, dtype=places.dtype, device=places.device)
    angles = places[..., None] / temperature ** (2 * pair / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)

"""What a picture's features have in common, as three colours (as DINOv2's authors show them, 2304.07193)."""

import torch
from torch import Tensor

from vitdense.contracts import Backbone

EDGES = (0.02, 0.98)
"""Quantiles of a component that become 0 and 1."""


@torch.no_grad()
def principal_components(backbone: Backbone, images: Tensor, *, count: int = 3) -> Tensor:
    """images: (B, C, H, W), normalised -> (B, count, h, w) in 0..1: each picture's first principal components.

    Signs are chosen so that of each component the largest entry is positive. A picture with fewer cells or channels
    than `count` has zeros behind those that there are.
    """
    patches, _, grid = backbone.tokens(images)
    centred = patches.double() - patches.double().mean(dim=1, keepdim=True)  # (B, N, C)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)  # (B, min(N, C), C), largest first
    directions = directions[:, :count]
    largest = directions.abs().argmax(dim=-1, keepdim=True)
    found = centred @ (directions * directions.gather(-1, largest).sign()).mT  # (B, N, count)
    low, high = torch.quantile(found, found.new_tensor(EDGES), dim=1, keepdim=True)
    shares = ((found - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).to(patches.dtype)
    maps = torch.unflatten(shares.mT, -1, grid)  # (B, count or fewer, h, w)
    missing = count - maps.shape[1]
    return maps if not missing else torch.cat([maps, maps.new_zeros(len(maps), missing, *grid)], dim=1)

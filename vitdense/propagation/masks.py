"""From masks to labels on a grid of cells, and back."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vitdense.propagation.features import Features, Size

Mask = NDArray[np.int32]

FLAT = 1e-5
"""Labels that differ by less than this share of themselves are the same but for rounding."""


def labels_of(mask: Mask, values: NDArray[np.int32], features: Features) -> Tensor:
    """mask: (H, W), values: (K,) of background and objects -> one-hot (h, w, K), the pixel in a cell's middle."""
    height, width, _ = features.vectors.shape
    rows = middles(height, features.stride, features.size[0], mask.shape[0])
    columns = middles(width, features.stride, features.size[1], mask.shape[1])
    cells = mask[rows[:, None], columns]  # (h, w)
    return torch.from_numpy(cells[..., None] == values).to(features.vectors)


def mask_of(labels: Tensor, values: NDArray[np.int32], features: Features, size: Size) -> Mask:
    """labels: (h, w, K) -> (H, W) of `values`: of each pixel the one whose label, stretched to 0..1 over the frame, is
    largest."""
    height, width, _ = labels.shape
    seen = features.size
    large = (height * features.stride, width * features.stride)
    maps = F.interpolate(labels.movedim(-1, 0)[None], size=large, mode="bilinear", align_corners=False)[0]
    chosen = stretched(maps[:, : seen[0], : seen[1]]).argmax(dim=0).cpu().numpy()  # (H, W) as the network saw it
    rows, columns = (middles(side, 1, side, small) for side, small in zip(size, seen, strict=True))
    return np.asarray(values[chosen[rows[:, None], columns]])


def stretched(maps: Tensor) -> Tensor:
    """maps: (K, H, W) -> each from its least to its largest value as 0..1; 0 as it is, and what is the same all over
    as 1."""
    low, high = (each[:, None, None] for each in (maps.flatten(1).amin(dim=1), maps.flatten(1).amax(dim=1)))
    # The published code divides by 0 here, or stretches rounding errors, where one object fills the frame.
    constant = high - low <= FLAT * high
    shares = torch.where(constant, 1, (maps - low) / torch.where(constant, 1, high - low))
    return torch.where(high > 0, shares, maps)


def middles(cells: int, stride: int, seen: int, pixels: int) -> NDArray[np.int64]:
    """(cells,): of `pixels` in a row, resized to `seen`, the one in the middle of each cell of `stride` of them.

    Steps are added up in floating point, as Pillow does when it resizes to the nearest: where a middle lies between two
    pixels, as column 640 of 854 resized to 832 does, its rounding decides, and published masks have it so.
    """
    step = pixels / (seen / stride)
    places = np.cumsum([step / 2, *[step] * (cells - 1)])
    return np.minimum(places.astype(np.int64), pixels - 1)

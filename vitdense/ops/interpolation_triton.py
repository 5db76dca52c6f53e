"""What the Triton kernels share that read maps at another size: the places along an axis, and a tile of values."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitdense.ops.interpolation import taps


@dataclass(frozen=True)
class Places:
    """Where the places of a resized axis lie: between the cell `first` and the next, of which they take `share`.

    first, share: (places,). A cell is touched by the places from `starts` to `ends`, (cells,) each, by `most` at most.
    """

    first: Tensor
    share: Tensor
    starts: Tensor
    ends: Tensor
    most: int


@lru_cache(maxsize=64)
def places(cells: int, size: int, *, align_corners: bool, device: torch.device) -> Places:
    """The places of `size` on an axis of `cells`, as torch has them in float32."""
    with torch.inference_mode(False), torch.no_grad():
        first, second, share = taps(cells, size, align_corners=align_corners, dtype=torch.float32)
        share = share.masked_fill(first == second, 0)  # the last cell has no next
        every = torch.arange(cells, device="cpu")
        starts, ends = torch.searchsorted(second, every), torch.searchsorted(first, every, right=True)
        most = int((ends - starts).max())
        first, starts, ends = (each.int().to(device) for each in (first, starts, ends))
        return Places(first, share.to(device), starts, ends, most)


def class_block(classes: int) -> int:
    """How many classes a program looks at together."""
    return 16 if classes > 8 else 8  # fewer would leave threads idle


@triton.jit
def blend(first, second, share):
    """The mean of two; one rounding is spelled out, so that all kernels round alike."""
    return tl.fma(share, second, (1 - share) * first)


@triton.jit
def locate(place, inside, first, share, cells, step):
    """The offsets of the two cells that each place lies between, and the share of the second."""
    cell = tl.load(first + place, mask=inside, other=0)
    return cell * step, tl.minimum(cell + 1, cells - 1) * step, tl.load(share + place, mask=inside, other=0.0)


@triton.jit
def read_blended(maps, upper, lower, share, inside):
    """The blends of two rows at offsets `upper` and `lower`, in float32; 0 where not inside."""
    above = tl.load(maps + upper, mask=inside, other=0.0).to(tl.float32)
    below = tl.load(maps + lower, mask=inside, other=0.0).to(tl.float32)
    return blend(above, below, share)

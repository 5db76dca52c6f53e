"""Class indices of bilinearly upsampled logits without ever holding them: only mixed cells are looked into."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.ops.eager import runs_eagerly
from vitdense.ops.interpolation import grid_of, taps
from vitdense.ops.kernels import runs_as_kernel

VALUES = {"cpu": 2**19, "cuda": 2**26}
"""Logits that are interpolated at once."""
MIXED = 0.6
"""The share of mixed cells from which on all pixels are interpolated, in strips of rows: a pixel of its own costs more
than one of a strip (benchmark rows upsample_argmax_smooth and upsample_argmax_random)."""
BLOCK = 8
"""Classes that a CPU compares by their largest before it looks for the one: argmax is slower than a maximum."""


def upsampled_argmax(logits: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """logits (B, K, h, w) -> (B, H, W): the class of the largest logit, uint8 up to 255 classes, else int16.

    What argmax gives of logits brought to `size` by `F.interpolate` in float32 or better; among equals the lowest
    index, and where two are equal but for their rounding, either. A class that wins at all four corners of a cell wins
    within it, since each pixel is a mean of the corners; all other pixels are interpolated, some at a time.
    A kernel for GPUs, where there is one to run (`kernels.py`), interpolates all pixels, a tile at a time.
    """
    precise = torch.promote_types(logits.dtype, torch.float32)
    kind = torch.uint8 if logits.shape[1] <= 255 else torch.int16
    if logits.shape[-2:] == size:
        return logits.argmax(dim=1).to(kind)
    if not runs_eagerly(logits):
        resized = F.interpolate(logits.to(precise), size, mode="bilinear", align_corners=align_corners)
        return resized.argmax(dim=1).to(kind)
    if runs_as_kernel(logits):
        from vitdense.ops.upsampled_argmax_triton import argmax_by_kernel

        return argmax_by_kernel(logits, size, align_corners=align_corners, kind=kind)
    height, width = logits.shape[-2:]
    with torch.no_grad():
        down = _axis(height, size[0], align_corners, precise, logits.device)
        across = _axis(width, size[1], align_corners, precise, logits.device)
        return torch.stack([_classes(picture.to(precise), down, across, align_corners, kind) for picture in logits])


@dataclass(frozen=True)
class _Axis:
    """The two cells that each place lies between, and the share of the second: (places,) each."""

    first: Tensor
    second: Tensor
    share: Tensor

    def at(self, places: Tensor, stride: int = 1) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """places (N,) -> both cells, times `stride`, and their shares: (N,) each."""
        share = self.share[places]
        return (self.first[places] * stride, 1 - share), (self.second[places] * stride, share)


def _axis(cells: int, size: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> _Axis:
    first, second, share = taps(cells, size, align_corners=align_corners, dtype=dtype)
    return _Axis(first.to(device), second.to(device), share.to(device))


def _classes(logits: Tensor, down: _Axis, across: _Axis, align_corners: bool, kind: torch.dtype) -> Tensor:
    """logits (K, h, w) of one picture -> (H, W)."""
    (classes, height, width), blocks = logits.shape, _Blocks(logits)
    at_once = max(1, VALUES[logits.device.type] // classes)
    table = blocks.tabulate(logits, at_once)  # (h * w, K or more)
    found_there = [blocks.argmax(some).to(kind) for some in torch.split(table, at_once)]
    corners = torch.cat(found_there).view(height, width)
    right, below = _shifted(corners, 1), _shifted(corners, 0)
    mixed = (corners != right) | (corners != below) | (corners != _shifted(right, 0))
    if mixed.float().mean() > MIXED:
        del table
        return _in_strips(blocks.lay_out(logits), blocks, (len(down.first), len(across.first)), align_corners, kind)
    open_ = 255 if kind == torch.uint8 else -1  # no class has this index
    found = corners.masked_fill(mixed, open_).index_select(0, down.first).index_select(1, across.first)
    flat, columns = found.view(-1), found.shape[1]
    for pixels in torch.split((flat == open_).nonzero()[:, 0], at_once):
        rows = torch.div(pixels, columns, rounding_mode="floor")
        taps_down, taps_across = down.at(rows, width), across.at(pixels - rows * columns)
        pairs = [(cell + start, share * part) for start, part in taps_down for cell, share in taps_across]
        cells, shares = (torch.stack(each, dim=1) for each in zip(*pairs, strict=True))  # (N, 4)
        values = F.embedding_bag(cells, table, mode="sum", per_sample_weights=shares)
        flat[pixels] = blocks.argmax(values).to(kind)
    return found


def _in_strips(
    laid_out: Tensor, blocks: "_Blocks", size: tuple[int, int], align_corners: bool, kind: torch.dtype
) -> Tensor:
    """laid_out (K or more, h, w) -> (H, W), every pixel interpolated."""
    found = torch.empty(size, dtype=kind, device=laid_out.device)
    grid = grid_of(laid_out[None], size, align_corners=align_corners, values=VALUES[laid_out.device.type])
    for strip in grid.rows:
        found[strip.places] = blocks.argmax(grid.read(laid_out, strip)).to(kind).view(-1, size[1])
    return found


def _shifted(cells: Tensor, dim: int) -> Tensor:
    """Each cell's next one along `dim`; the last one's is itself."""
    return torch.cat([cells.narrow(dim, 1, cells.shape[dim] - 1), cells.narrow(dim, -1, 1)], dim=dim)


class _Blocks:
    """How classes are laid out: on a CPU, the k-th of each block side by side, so that maxima of blocks are quick."""

    def __init__(self, logits: Tensor) -> None:
        classes = len(logits)
        self.count = -(-classes // BLOCK)
        self.plain = logits.device.type != "cpu" or classes < 4 * BLOCK
        # The last class fills the last block up; being behind itself, it is never the first of the largest twice.
        self.order = torch.arange(self.count * BLOCK, device="cpu").view(-1, BLOCK).t().reshape(-1)
        self.order = self.order.clamp_max(classes - 1)
        self.members = torch.arange(BLOCK, device="cpu") * self.count

    def lay_out(self, logits: Tensor) -> Tensor:
        """logits (K, h, w) -> the same, or (K or more, h, w) where blocks are filled up."""
        return logits if self.plain else logits[self.order]

    def tabulate(self, logits: Tensor, at_once: int) -> Tensor:
        """logits (K, h, w) -> (h * w, K or more), laid out so many rows at a time."""
        flat = logits.flatten(1)
        if self.plain:
            return flat.t().contiguous()
        table = flat.new_empty(flat.shape[1], len(self.order))
        for into, cells in zip(torch.split(table, at_once), torch.split(flat, at_once, dim=1), strict=True):
            into.copy_(cells[self.order].t())
        return table

    def argmax(self, values: Tensor) -> Tensor:
        """values (N, classes as laid out) -> (N,): the first class of the largest."""
        if self.plain:
            return values.argmax(dim=1)
        largest = values
        while largest.shape[1] > self.count:
            largest = torch.maximum(*largest.chunk(2, dim=1))
        block = largest.argmax(dim=1, keepdim=True)  # (N, 1)
        return block[:, 0] * BLOCK + values.gather(1, block + self.members).argmax(dim=1)

"""Class indices of bilinearly upsampled logits by a Triton kernel, tile by tile; untimed, and not yet run on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitdense.ops.interpolation_triton import blend, class_block, locate, places, read_blended

PIXELS = 128
"""Pixels of a program."""


def argmax_by_kernel(logits: Tensor, size: tuple[int, int], *, align_corners: bool, kind: torch.dtype) -> Tensor:
    """logits (B, K, h, w) -> (B, H, W) of `kind`: `upsampled_argmax` with nothing held but the classes found."""
    batch, classes, rows, columns = logits.shape
    down = places(rows, size[0], align_corners=align_corners, device=logits.device)
    across = places(columns, size[1], align_corners=align_corners, device=logits.device)
    found = torch.empty((batch, *size), dtype=kind, device=logits.device)
    grid = (triton.cdiv(size[0] * size[1], PIXELS), batch)
    with torch.cuda.device_of(logits):
        _find_classes[grid](
            logits, found, down.first, down.share, across.first, across.share,
            size[0] * size[1], size[1], classes, rows, columns, *logits.stride(),
            tile=PIXELS, block=class_block(classes),
        )  # fmt: skip
    return found


@triton.jit(do_not_specialize=["pixels", "width", "classes", "rows", "columns", "step_picture", "step_row"])
def _find_classes(
    logits, found, first_down, share_down, first_across, share_across,
    pixels, width, classes, rows, columns, step_picture, step_class, step_row, step_column,
    tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Some pixels of a picture: the first of the largest logits so far goes from one block of classes to the next."""
    picture = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * tile + tl.arange(0, tile)
    inside = pixel < pixels
    upper, lower, share_y = locate(pixel // width, inside, first_down, share_down, rows, step_row)
    left, right, share_x = locate(pixel % width, inside, first_across, share_across, columns, step_column)
    largest = tl.full((tile,), float("-inf"), tl.float32)
    winner = tl.zeros((tile,), tl.int32)
    for start in range(0, classes, block):
        index = start + tl.arange(0, block)
        plane = logits + picture * step_picture + index[:, None] * step_class  # (block, 1)
        read = (index < classes)[:, None] & inside[None, :]
        before = read_blended(plane + left[None, :], upper[None, :], lower[None, :], share_y[None, :], read)
        after = read_blended(plane + right[None, :], upper[None, :], lower[None, :], share_y[None, :], read)
        values = blend(before, after, share_x[None, :])  # (block, tile)
        # As for torch, what is no number is larger than every number.
        values = tl.where(values != values, float("inf"), values)
        values = tl.where((index < classes)[:, None], values, float("-inf"))
        best, first = tl.max(values, axis=0, return_indices=True, return_indices_tie_break_left=True)
        winner = tl.where(best > largest, start + first, winner)
        largest = tl.maximum(largest, best)
    tl.store(found + picture * pixels + pixel, winner.to(found.dtype.element_ty), mask=inside)

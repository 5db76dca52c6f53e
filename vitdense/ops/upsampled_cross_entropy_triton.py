"""Cross entropy of bilinearly upsampled logits by two Triton kernels; untimed, and not yet run on a GPU.

The first reads each pixel's logits once, for its loss and its softmax's largest logit and sum; the second gives every
cell to one program, which makes the logits of the pixels around it again and gathers their gradient: nothing is added
by more than one program, so that two runs give the same bits, and nothing of K * H * W values exists.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitdense.contracts import IGNORE
from vitdense.ops.interpolation_triton import Places, blend, class_block, locate, places, read_blended

PIXELS = 128
"""Pixels of a program of the first kernel."""
CELLS = 64
"""Cells of a row that a program of the second kernel owns, at most."""


def walk_by_kernels(
    logits: Tensor,
    masks: Tensor,
    gradient: Tensor | None,
    *,
    align_corners: bool,
    weights: Tensor | None,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """logits (B, K, h, w), masks (B, H, W) -> the sum of the losses and of the pixels' weights, () in float64.

    The sum's gradient is written to `gradient`, (B, K, h, w), if it is given. A label that is no class makes the sum
    NaN: to raise would make the GPU wait.
    """
    (_, classes, rows, columns), (height, width) = logits.shape, masks.shape[-2:]
    device, masks = logits.device, masks.contiguous()
    if weights is None:
        weights = torch.ones(classes, device=device)
    weights = weights.to(device=device, dtype=torch.float32).contiguous()
    down = places(rows, height, align_corners=align_corners, device=device)
    across = places(columns, width, align_corners=align_corners, device=device)
    smoothing = (1 - label_smoothing, label_smoothing / classes, weights.sum())
    with torch.cuda.device_of(logits):
        sums, largest, inverse = _sum(logits, masks, weights, down, across, smoothing)
        if gradient is not None:
            _gather(gradient, logits, masks, weights, down, across, smoothing, largest, inverse)
    total, count = sums.sum(dim=1, dtype=torch.float64)
    return total, count


Smoothing = tuple[float, float, Tensor]
"""What a pixel's own class counts, what every class counts times its weight, and the sum of the weights."""


def _sum(
    logits: Tensor, masks: Tensor, weights: Tensor, down: Places, across: Places, smoothing: Smoothing
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums (2, programs) of losses and weights, and each pixel's largest logit and inverse sum (B, H, W)."""
    (batch, classes, rows, columns), (height, width) = logits.shape, masks.shape[-2:]
    grid = (triton.cdiv(height * width, PIXELS), batch)
    sums = torch.empty((2, grid[0] * grid[1]), device=logits.device)
    largest, inverse = torch.empty((2, *masks.shape), device=logits.device)
    _sum_losses[grid](
        logits, masks, weights, down.first, down.share, across.first, across.share, smoothing[2],
        sums, largest, inverse,
        height * width, width, classes, rows, columns, *logits.stride(), smoothing[0], smoothing[1],
        smoothed=smoothing[1] > 0, ignored=IGNORE, tile=PIXELS, block=class_block(classes),
    )  # fmt: skip
    return sums, largest, inverse


def _gather(
    gradient: Tensor,
    logits: Tensor,
    masks: Tensor,
    weights: Tensor,
    down: Places,
    across: Places,
    smoothing: Smoothing,
    largest: Tensor,
    inverse: Tensor,
) -> None:
    """The gradient of the sum of all losses is written to `gradient`, (B, K, h, w)."""
    (batch, classes, rows, columns), (height, width) = logits.shape, masks.shape[-2:]
    block, cells = class_block(classes), min(CELLS, triton.next_power_of_2(columns))
    grid = (rows * triton.cdiv(columns, cells), triton.cdiv(classes, block), batch)
    _gather_gradient[grid](
        gradient, logits, masks, weights, down.first, down.share, down.starts, down.ends,
        across.first, across.share, across.starts, across.ends, smoothing[2], largest, inverse,
        height * width, width, classes, rows, columns, across.most, *logits.stride(), *gradient.stride(),
        smoothing[0], smoothing[1],
        smoothed=smoothing[1] > 0, ignored=IGNORE, tile=cells, block=block,
    )  # fmt: skip


@triton.jit
def _read_labels(masks, weights, pixel, inside, classes, ignored):
    """The labels of some pixels, which of them count, and the weights of those."""
    label = tl.load(masks + pixel, mask=inside, other=0).to(tl.int32)
    labelled = inside & (label != ignored)
    weight = tl.load(weights + label, mask=labelled & (label >= 0) & (label < classes), other=0.0)
    return label, labelled, weight


@triton.jit(do_not_specialize=["pixels", "width", "classes", "rows", "columns", "step_picture", "step_row"])
def _sum_losses(
    logits, masks, weights, first_down, share_down, first_across, share_across, weight_sum,
    sums, largest_logits, inverse_sums,
    pixels, width, classes, rows, columns, step_picture, step_class, step_row, step_column, own, every,
    smoothed: tl.constexpr, ignored: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Some pixels of a picture, their softmax brought along from one block of classes to the next."""
    picture = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * tile + tl.arange(0, tile)
    inside = pixel < pixels
    upper, lower, share_y = locate(pixel // width, inside, first_down, share_down, rows, step_row)
    left, right, share_x = locate(pixel % width, inside, first_across, share_across, columns, step_column)
    label, labelled, label_weight = _read_labels(masks, weights, picture * pixels + pixel, inside, classes, ignored)
    largest = tl.full((tile,), -3.4e38, tl.float32)  # not infinite, lest the difference to infinity be no number
    total = tl.zeros((tile,), tl.float32)
    smooth = tl.zeros((tile,), tl.float32)
    picked = tl.full((tile,), float("nan"), tl.float32)
    for start in range(0, classes, block):
        index = start + tl.arange(0, block)
        plane = logits + picture * step_picture + index[:, None] * step_class  # (block, 1)
        read = (index < classes)[:, None] & inside[None, :]
        before = read_blended(plane + left[None, :], upper[None, :], lower[None, :], share_y[None, :], read)
        after = read_blended(plane + right[None, :], upper[None, :], lower[None, :], share_y[None, :], read)
        values = blend(before, after, share_x[None, :])  # (block, tile)
        own_value = tl.sum(tl.where(index[:, None] == label[None, :], values, 0.0), axis=0)
        picked = tl.where((label >= start) & (label < tl.minimum(start + block, classes)), own_value, picked)
        if smoothed:
            weight = tl.load(weights + index, mask=index < classes, other=0.0)
            smooth += tl.sum(weight[:, None] * values, axis=0)
        values = tl.where((index < classes)[:, None], values, float("-inf"))
        larger = tl.maximum(largest, tl.max(values, axis=0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(values - larger[None, :]), axis=0)
        largest = larger
    logarithm = tl.log(total)
    loss = own * label_weight * (picked - largest - logarithm)
    if smoothed:
        loss += every * (smooth - tl.load(weight_sum) * (largest + logarithm))
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + program, -tl.sum(tl.where(labelled, loss, 0.0)))
    tl.store(sums + tl.num_programs(0) * tl.num_programs(1) + program, tl.sum(label_weight))
    tl.store(largest_logits + picture * pixels + pixel, largest, mask=inside)
    tl.store(inverse_sums + picture * pixels + pixel, 1 / total, mask=inside)


@triton.jit(do_not_specialize=["pixels", "width", "classes", "rows", "columns", "most", "step_picture", "step_row"])
def _gather_gradient(
    gradient, logits, masks, weights, first_down, share_down, starts_down, ends_down,
    first_across, share_across, starts_across, ends_across, weight_sum, largest_logits, inverse_sums,
    pixels, width, classes, rows, columns, most, step_picture, step_class, step_row, step_column,
    out_picture, out_class, out_row, out_column, own, every,
    smoothed: tl.constexpr, ignored: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Some cells of a row, for a block of classes: row by row of the pixels that touch them, then column by column."""
    picture, tiles = tl.program_id(2).to(tl.int64), tl.cdiv(columns, tile)
    row = tl.program_id(0) // tiles
    cell = tl.program_id(0) % tiles * tile + tl.arange(0, tile)
    index = tl.program_id(1) * block + tl.arange(0, block)
    owned = cell < columns
    valid = (index < classes)[:, None] & owned[None, :]
    plane = logits + picture * step_picture + index[:, None] * step_class
    here = plane + cell[None, :] * step_column  # (block, tile)
    before = plane + tl.maximum(cell - 1, 0)[None, :] * step_column
    after = plane + tl.minimum(cell + 1, columns - 1)[None, :] * step_column
    first_column = tl.load(starts_across + cell, mask=owned, other=0)
    end_column = tl.load(ends_across + cell, mask=owned, other=0)
    class_weight = tl.load(weights + index, mask=index < classes, other=0.0)[:, None]
    gathered = tl.zeros((block, tile), tl.float32)
    for y in range(tl.load(starts_down + row), tl.load(ends_down + row)):
        upper, lower, share_y = locate(y, True, first_down, share_down, rows, step_row)
        value_before = read_blended(before, upper, lower, share_y, valid)
        value_here = read_blended(here, upper, lower, share_y, valid)
        value_after = read_blended(after, upper, lower, share_y, valid)
        part_y = tl.where(tl.load(first_down + y) == row, 1 - share_y, share_y)
        for offset in range(0, most):
            x = first_column + offset
            touching = x < end_column
            left = tl.load(first_across + x, mask=touching, other=0)
            share_x = tl.load(share_across + x, mask=touching, other=0.0)
            pixel = picture * pixels + y * width + x
            label, touching, weight = _read_labels(masks, weights, pixel, touching, classes, ignored)
            largest = tl.load(largest_logits + pixel, mask=touching, other=float("inf"))
            inverse = tl.load(inverse_sums + pixel, mask=touching, other=0.0)
            is_left = (left < cell)[None, :]
            first, second = tl.where(is_left, value_before, value_here), tl.where(is_left, value_here, value_after)
            value = blend(first, second, share_x[None, :])
            probability = tl.exp(value - largest[None, :]) * inverse[None, :]
            counts = own * weight[None, :]
            arrived = counts * probability - tl.where(index[:, None] == label[None, :], counts, 0.0)
            if smoothed:
                arrived += every * (tl.load(weight_sum) * probability - class_weight)
            part = part_y * tl.where(left == cell, 1 - share_x, share_x)
            gathered += tl.where(touching[None, :], part[None, :] * arrived, 0.0)
    target = gradient + picture * out_picture + row * out_row + index[:, None] * out_class + cell[None, :] * out_column
    tl.store(target, gathered, mask=valid)

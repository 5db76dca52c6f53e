"""Sampling of multi-scale deformable attention in plain PyTorch (Deformable DETR, https://arxiv.org/abs/2010.04159)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vitdense.ops.deformable_strips import Layout, gradients_in_strips, sample_in_strips
from vitdense.ops.deformable_strips import Shapes as Shapes
from vitdense.ops.eager import runs_eagerly
from vitdense.ops.kernels import runs_as_kernel


def deformable_attention(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Each query's weighted sum of values read at its own points, bilinearly, zero beyond the grids.

    values: (B, S, heads, d), the grids of `shapes` (h, w) one after another, row by row; locations: (B, Q, heads,
    levels, points, 2), (x, y) where 0 and 1 are a grid's outer edges; weights: (B, Q, heads, levels, points)
    -> (B, Q, heads * d). Summed in float32 at least, given back in the values' precision.
    On GPUs that kernels run on (`kernels.py`), one for the sum and two for the gradients take it; on CPUs some queries
    are taken at a time (`deformable_strips.py`).
    """
    if runs_eagerly(values, locations, weights) and runs_as_kernel(values):
        sampled: Tensor = _Sampling.apply(
            tuple((height, width) for height, width in shapes), values, locations, weights
        )
        return sampled
    precise = torch.promote_types(values.dtype, torch.float32)
    inputs = (values.to(precise), locations.to(precise), weights.to(precise))
    if values.device.type == "cpu" and runs_eagerly(*inputs):
        layout = Layout.of(shapes, values.shape[2], locations.shape[-2], inputs[0])
        if layout.fits(inputs[0]):
            read: Tensor = _Strips.apply(layout, *inputs)
            return read.to(values.dtype)
    if torch.compiler.is_exporting():
        return _read_grids(inputs[0], shapes, *inputs[1:]).to(values.dtype)
    return _read_bags(inputs[0], shapes, *inputs[1:]).to(values.dtype)


class _Sampling(torch.autograd.Function):
    """The sum by a kernel, and its gradients by two."""

    @staticmethod
    def forward(
        ctx: Any, shapes: tuple[tuple[int, int], ...], values: Tensor, locations: Tensor, weights: Tensor
    ) -> Tensor:
        from vitdense.ops.deformable_triton import sample_by_kernel

        ctx.shapes = shapes
        ctx.save_for_backward(values, locations, weights)
        return sample_by_kernel(values, shapes, locations, weights)

    @staticmethod
    @once_differentiable  # as is torch's embedding_bag
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        from vitdense.ops.deformable_gradient_triton import gradients_by_kernels

        values, locations, weights = ctx.saved_tensors
        return None, *gradients_by_kernels(
            above, values, ctx.shapes, locations, weights, at_values=ctx.needs_input_grad[1]
        )


class _Strips(torch.autograd.Function):
    """The sum on a CPU, some queries at a time; for the backward pass nothing is kept but the inputs."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.layout = layout
        ctx.save_for_backward(values, locations, weights)
        return sample_in_strips(layout, values, locations, weights)

    @staticmethod
    @once_differentiable  # as is torch's embedding_bag
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        return None, *gradients_in_strips(ctx.layout, above, *ctx.saved_tensors)


def _read_bags(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """One weighted bag of rows for each query and head: what is read is never laid out, unlike with grid_sample."""
    batch, cells, heads, width = values.shape
    queries = locations.shape[1]
    # int32 halves the indices and the time of the sort in the backward pass.
    picture = torch.arange(batch, device=values.device, dtype=torch.int32).view(-1, 1, 1, 1) * (cells * heads)
    first = picture + torch.arange(heads, device=values.device, dtype=torch.int32)[:, None]  # (B, 1, heads, 1)
    rows, shares, start = [], [], 0
    for level, (height, across) in enumerate(shapes):
        columns = _neighbours(locations[:, :, :, level, :, 0], across)
        for y, share_y in _neighbours(locations[:, :, :, level, :, 1], height):
            share = share_y * weights[:, :, :, level]
            row = (y * across + start) * heads + first
            rows += [row + x * heads for x, _ in columns]
            shares += [share * share_x for _, share_x in columns]
        start += height * across
    bags = torch.stack(rows, dim=-1).reshape(batch * queries * heads, -1)  # (B * Q * heads, points * 4 * levels)
    bag_shares = torch.stack(shares, dim=-1).reshape(batch * queries * heads, -1)
    table = values.reshape(-1, width)  # (B * S * heads, d)
    summed = F.embedding_bag(bags, table, mode="sum", per_sample_weights=bag_shares)
    return summed.view(batch, queries, heads * width)  # (B, Q, heads * d)


def _neighbours(location: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """location: (B, Q, heads, points) along an axis of `count` cells -> the cell before and after, and their shares."""
    place = location * count - 0.5
    below = place.floor()
    beyond = place - below
    cell = below.to(torch.int32)
    return [
        (index.clamp(0, count - 1), share * ((index >= 0) & (index < count)))
        for index, share in ((cell, 1 - beyond), (cell + 1, beyond))
    ]


def _read_grids(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The same by grid_sample, which other runtimes have: for exported graphs."""
    batch, _, heads, width = values.shape
    queries = locations.shape[1]
    points = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * heads, Q, levels, points, 2)
    shares = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (B * heads, 1, Q, levels, points)
    summed = values.new_zeros(batch * heads, width, queries)
    parts = torch.split(values, [height * across for height, across in shapes], dim=1)
    for level, (part, (height, across)) in enumerate(zip(parts, shapes, strict=True)):
        grid = part.permute(0, 2, 3, 1).reshape(batch * heads, width, height, across)  # (B * heads, d, h, w)
        read = F.grid_sample(grid, points[:, :, level], mode="bilinear", align_corners=False)
        summed = summed + (read * shares[:, :, :, level]).sum(-1)
    return summed.view(batch, heads * width, queries).mT  # (B, Q, heads * d)

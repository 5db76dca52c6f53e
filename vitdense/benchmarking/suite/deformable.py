"""Rows of deformable attention: its sampling alone, and a training step of Deformable DETR on ResNet-50."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.benchmarking.suite.detectors import Extent, detector_row
from vitdense.ops.deformable import deformable_attention

Shapes = tuple[tuple[int, int], ...]
Sampling = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]


class SamplingJob(Job):
    """Queries of every cell, as in an encoder, that read 4 points of each level around themselves: forward, backward.

    Gradients are compared in double precision: in float32 some of so many points fall to either side of a cell's edge.
    """

    def __init__(self, sampling: Sampling, conditions: Conditions) -> None:
        sides = (8, 4, 2, 1) if conditions.tiny else (64, 32, 16, 8)
        self.shapes: Shapes = tuple((side, side) for side in sides)
        batch, generator = conditions.batch or 1, torch.Generator().manual_seed(SEED)
        cells = sum(side * side for side in sides)
        centres = torch.cat(
            [torch.cartesian_prod(*[(torch.arange(side) + 0.5) / side] * 2).flip(-1) for side in sides]
        )  # (cells, 2)
        reach = 3 / torch.tensor(sides)[:, None, None]  # (levels, 1, 1), in cells
        offsets = reach * torch.randn(batch, cells, 8, len(sides), 4, 2, generator=generator)
        values = torch.randn(batch, cells, 8, 32, generator=generator)
        weights = torch.randn(batch, cells, 8, len(sides) * 4, generator=generator).softmax(-1)
        inputs = (values, centres[:, None, None, None] + offsets, torch.unflatten(weights, -1, (len(sides), 4)))
        self.inputs = [each.to(conditions.device).requires_grad_() for each in inputs]
        self.above = torch.randn(batch, cells, 256, generator=generator).to(conditions.device)
        self.sampling: Sampling = torch.compile(sampling) if conditions.compiled else sampling

    def step(self) -> None:
        """Forward and backward, the gradients made anew."""
        self._run()

    def outcome(self) -> Outcome:
        """The sums, and all gradients in double precision."""
        found = {"map": self._run().detach()}
        twin = copy.copy(self)
        twin.inputs = [each.detach().double().requires_grad_() for each in self.inputs]
        twin.above = self.above.double()
        twin._run()
        for name, each in zip(("values", "locations", "weights"), twin.inputs, strict=True):
            assert each.grad is not None
            found[f"gradient of {name}"] = each.grad
        return found

    def _run(self) -> Tensor:
        for each in self.inputs:
            each.grad = None
        values, locations, weights = self.inputs
        sums = self.sampling(values, self.shapes, locations, weights)
        sums.backward(self.above)  # type: ignore[no-untyped-call]
        return sums


def _transformers_sampling(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    sizes = torch.tensor(shapes, device=values.device)
    sums: Tensor = MultiScaleDeformableAttention()(values, sizes, shapes, None, locations, weights, 64)
    return sums


def _sampling_row() -> Row:
    def ours(conditions: Conditions) -> Job:
        return SamplingJob(deformable_attention, conditions)

    def theirs(conditions: Conditions) -> Job:
        return SamplingJob(_transformers_sampling, conditions)

    peer = Peer("transformers", "transformers", theirs, lambda conditions: Pair(ours(conditions), theirs(conditions)))
    return Row(
        "deformable_attention",
        "5440 queries of 8 heads read 4 points of each of 4 levels, forward and backward",
        ours,
        (peer,),
        {"cpu": Goal(0.60, 0.50)},
        ("transformers: MultiScaleDeformableAttention, its module in PyTorch, without the kernels of a hub.",),
    )


def _deformable_detr(extent: Extent) -> nn.Module:
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    make: Any = DeformableDetrConfig
    config = make(**extent.options())
    return DeformableDetrForObjectDetection(config)


ROWS = (
    _sampling_row(),
    detector_row(
        "deformable_detr_train",
        "Deformable DETR on ResNet-50, 2 x 512 x 512, 4 levels, 300 queries, forward, loss and backward",
        _deformable_detr,
        Goal(0.60, 0.50),
    ),
)

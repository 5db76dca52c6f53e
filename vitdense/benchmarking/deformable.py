"""Rows of deformable attention: its sampling alone, and a training step of Deformable DETR on ResNet-50."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitdense.benchmarking.maps import enliven
from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.contracts import Batch
from vitdense.loading import load_model
from vitdense.ops.deformable import deformable_attention

Shapes = tuple[tuple[int, int], ...]
Sampling = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]
ENOUGH = 160
"""The side of the pictures on which losses and gradients are compared in double precision."""
FROZEN = ("conv1.", "bn1.", "layer1.")
"""What transformers doesn't train of a ResNet, besides its norms."""


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


@dataclass(frozen=True)
class Extent:
    """A ResNet of timm, the layers above it, and the side of pictures."""

    backbone: str
    layers: int
    channels: int
    queries: int
    classes: int
    side: int


FULL, SMALL = Extent("resnet50", 6, 256, 300, 91, 512), Extent("resnet18", 2, 64, 12, 7, 96)
Things = list[tuple[Tensor, Tensor]]
"""Of each picture the labels (N,) and the boxes (N, 4) as (cx, cy, w, h) in shares of the picture."""


class Detector(Protocol):
    """What a contender does, besides being a module."""

    def learn(self, images: Tensor, things: Things) -> tuple[Tensor, Tensor, Tensor]:
        """images: (B, 3, H, W) -> the loss, and the last layer's logits and boxes."""


class Ours(nn.Module):
    """What a folder of transformers' holds; the norms of its backbone stand still."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        model = load_model(folder)
        self.backbone, self.head = model.backbone, model.head
        for name, parameter in self.backbone.named_parameters():
            name = name.removeprefix("model.")
            parameter.requires_grad_(parameter.ndim > 1 and not name.startswith(FROZEN))

    def train(self, mode: bool = True) -> "Ours":
        """The head alone."""
        self.head.train(mode)
        return self

    def learn(self, images: Tensor, things: Things) -> tuple[Tensor, Tensor, Tensor]:
        """As training calls it."""
        height, width = images.shape[-2:]
        batch: Batch = {"images": images, "targets": []}
        for labels, boxes in things:
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=-1)
            batch["targets"].append(
                {"labels": labels, "boxes": corners * corners.new_tensor([width, height, width, height])}
            )
        outputs = self.head(self.backbone(images), batch)
        losses: dict[str, Tensor] = self.head.losses(outputs, batch)
        return torch.stack(list(losses.values())).sum(), outputs["logits"], outputs["boxes_cxcywh"]


class Transformers(nn.Module):
    """DeformableDetrForObjectDetection as it comes, with losses of all layers."""

    def __init__(self, extent: Extent) -> None:
        from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

        super().__init__()
        make: Any = DeformableDetrConfig
        config = make(
            use_timm_backbone=True,
            use_pretrained_backbone=False,
            backbone=extent.backbone,
            d_model=extent.channels,
            encoder_layers=extent.layers,
            decoder_layers=extent.layers,
            num_queries=extent.queries,
            num_labels=extent.classes,
            dropout=0.0,
            auxiliary_loss=True,
        )
        self.network: Any = DeformableDetrForObjectDetection(config)

    def learn(self, images: Tensor, things: Things) -> tuple[Tensor, Tensor, Tensor]:
        """As its trainer calls it."""
        found = self.network(images, labels=[{"class_labels": labels, "boxes": boxes} for labels, boxes in things])
        return found.loss, found.logits, found.pred_boxes


class DetectorJob(Job):
    """Two random pictures of seven things: forward, loss and backward."""

    def __init__(self, network: Any, conditions: Conditions, extent: Extent) -> None:
        self.network: Any = network.to(conditions.device).train()
        self.conditions, self.extent = conditions, extent
        self.images, self.things = self._pictures(extent.side)
        self.learn: Callable[..., tuple[Tensor, Tensor, Tensor]] = network.learn
        if conditions.compiled:
            self.learn = torch.compile(network.learn)

    def step(self) -> None:
        """zero_grad, forward, loss and backward."""
        self._run()

    def outcome(self) -> Outcome:
        """Loss, logits and boxes; and in double precision, on small pictures, the loss and the gradients."""
        loss, logits, boxes = self._run()
        found = {"loss": loss.detach(), "logits": logits.detach(), "boxes": boxes.detach()}
        if self.conditions.compiled or self.conditions.precision == "bf16":
            return found
        network = copy.deepcopy(self.network).double()
        images, things = self._pictures(min(self.extent.side, ENOUGH))
        exact = images.double().requires_grad_()
        loss, _, _ = network.learn(exact, [(labels, boxes.double()) for labels, boxes in things])
        loss.backward()
        assert exact.grad is not None
        grown = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
        named = {name: each for full, each in grown.items() if (name := _compared(full)) is not None}
        return {**found, "loss in double precision": loss.detach(), "gradient of images": exact.grad, **named}

    def _pictures(self, side: int) -> tuple[Tensor, Things]:
        generator, batch = torch.Generator().manual_seed(SEED), self.conditions.batch or 2
        images = torch.randn(batch, 3, side, side, generator=generator)
        things = []
        for _ in range(batch):
            labels = torch.randint(self.extent.classes, (7,), generator=generator)
            boxes = 0.1 + 0.2 * torch.rand(7, 4, generator=generator) + torch.tensor([0.2, 0.2, 0.0, 0.0])
            things.append((labels.to(self.conditions.device), boxes.to(self.conditions.device)))
        return images.to(self.conditions.device), things

    def _run(self) -> tuple[Tensor, Tensor, Tensor]:
        self.network.zero_grad(set_to_none=True)
        with self.conditions.autocast():
            found = self.learn(self.images, self.things)
        found[0].backward()  # type: ignore[no-untyped-call]
        return found


def _compared(name: str) -> str | None:
    """The name, from the layers on, of a parameter whose gradient is compared: those of the encoder and decoder."""
    if name.endswith("k_proj.bias"):  # no softmax knows of it: its gradient is rounding
        return None
    for part in ("encoder.layers.", "decoder.layers.", "input_proj.", "level_embed"):
        if part in name and "backbone" not in name:
            return f"gradient of {name[name.index(part) :]}"
    return None


def _detector_row() -> Row:
    def extent(conditions: Conditions) -> Extent:
        return SMALL if conditions.tiny else FULL

    def theirs(conditions: Conditions) -> DetectorJob:
        return DetectorJob(enliven(Transformers(extent(conditions))), conditions, extent(conditions))

    def twin(network: Any, conditions: Conditions) -> DetectorJob:
        with TemporaryDirectory() as folder:
            network.save_pretrained(folder)
            return DetectorJob(Ours(Path(folder)), conditions, extent(conditions))

    def ours(conditions: Conditions) -> DetectorJob:
        return twin(enliven(Transformers(extent(conditions))).network, conditions)

    def pair(conditions: Conditions) -> Pair:
        job = theirs(conditions)
        return Pair(twin(job.network.network, conditions), job)

    return Row(
        "deformable_detr_train",
        "Deformable DETR on ResNet-50, 2 x 512 x 512, 4 levels, 300 queries, forward, loss and backward",
        ours,
        (Peer("transformers", "transformers", theirs, pair),),
        {"cpu": Goal(0.60, 0.50)},
        (
            "A training step is forward, the losses of all decoder layers, and backward, without the optimizer; nobody "
            "has dropout. Norms, the stem and the first stage of the ResNet are frozen, as transformers has it.",
            f"Gradients are compared in double precision, on {ENOUGH} x {ENOUGH} pixels.",
        ),
    )


ROWS = (_sampling_row(), _detector_row())

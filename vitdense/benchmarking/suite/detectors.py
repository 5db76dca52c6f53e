"""The job of rows of detectors on a ResNet: two pictures of things to a loss and the gradients of all weights, against
transformers' model, from which ours has its weights."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.benchmarking.suite.maps import enliven
from vitdense.contracts import Batch
from vitdense.loading import load_model

ENOUGH = 160
"""The side of the pictures on which losses and gradients are compared in double precision."""
FROZEN = ("conv1.", "bn1.", "layer1.")
"""What transformers doesn't train of a ResNet, besides its norms."""
NOTES = (
    "A training step is forward, the losses of all decoder layers, and backward, without the optimizer; nobody "
    "has dropout. Norms, the stem and the first stage of the ResNet are frozen, as transformers has it.",
    f"Gradients are compared in double precision, on {ENOUGH} x {ENOUGH} pixels.",
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

    def options(self) -> dict[str, Any]:
        """In transformers' words, with a loss for every decoder layer."""
        return {
            "use_timm_backbone": True,
            "use_pretrained_backbone": False,
            "backbone": self.backbone,
            "d_model": self.channels,
            "encoder_layers": self.layers,
            "decoder_layers": self.layers,
            "num_queries": self.queries,
            "num_labels": self.classes,
            "dropout": 0.0,
            "auxiliary_loss": True,
        }


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
    """A detector of transformers as it comes."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

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
        with doubles():
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


@contextmanager
def doubles() -> Iterator[None]:
    """What transformers' losses make anew in each call (weights of classes) is in double precision too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _compared(name: str) -> str | None:
    """The name, from the layers on, of a parameter whose gradient is compared: those of the encoder and decoder."""
    # No softmax knows of the first, nor of the others where all values are the same, as DETR's queries begin: their
    # gradients are rounding.
    if name.endswith("k_proj.bias") or "decoder.layers.0.self_attn.q_proj" in name:
        return None
    if "decoder.layers.0.self_attn.k_proj" in name:
        return None
    for part in ("encoder.layers.", "decoder.layers.", "input_proj.", "level_embed"):
        if part in name and "backbone" not in name:
            return f"gradient of {name[name.index(part) :]}"
    return None


def detector_row(name: str, summary: str, build: Callable[[Extent], nn.Module], cpu: Goal) -> Row:
    """The row of a training step; `build` makes transformers' detector."""

    def extent(conditions: Conditions) -> Extent:
        return SMALL if conditions.tiny else FULL

    def theirs(conditions: Conditions) -> DetectorJob:
        network = enliven(Transformers(build(extent(conditions))))
        return DetectorJob(network, conditions, extent(conditions))

    def twin(network: Any, conditions: Conditions) -> DetectorJob:
        with TemporaryDirectory() as folder:
            network.save_pretrained(folder)
            return DetectorJob(Ours(Path(folder)), conditions, extent(conditions))

    def ours(conditions: Conditions) -> DetectorJob:
        return twin(enliven(Transformers(build(extent(conditions)))).network, conditions)

    def pair(conditions: Conditions) -> Pair:
        job = theirs(conditions)
        return Pair(twin(job.network.network, conditions), job)

    return Row(name, summary, ours, (Peer("transformers", "transformers", theirs, pair),), {"cpu": cpu}, NOTES)

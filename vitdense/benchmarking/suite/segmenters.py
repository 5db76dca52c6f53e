"""The job of rows of segmentation: random pictures to masks, or a loss and the gradients of all weights."""

import copy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.benchmarking.rows import SEED, Conditions, Job, Outcome

ENOUGH = 256
"""The side of the part of a picture on which gradients are compared: in double precision the whole takes minutes."""

GRADIENTS = (
    f"Gradients are compared in double precision, on {ENOUGH} x {ENOUGH} pixels: in float32, values next to a ReLU's "
    "edge fall to either side of it."
)


@dataclass(frozen=True)
class Task:
    """Square pictures of `side`; gradients of parameters whose names begin with `compared` are compared."""

    side: int
    classes: int
    compared: tuple[str, ...]
    train: bool
    frozen_norms: bool


class Segmenter(Protocol):
    """What a contender does, besides being a module."""

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """images (B, 3, H, W), masks (B, H, W) -> ()."""

    def masks(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> class indices (B, H, W)."""

    def logits(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> (B, K, H, W), for comparisons: not timed."""


class ByLogits(nn.Module):
    """A peer whose `network` gives logits at the size of the pictures, as its users go on from there."""

    network: Any

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """The mean cross-entropy of all pixels."""
        return F.cross_entropy(self.logits(images), masks)

    def masks(self, images: Tensor) -> Tensor:
        """The largest logit."""
        return self.logits(images).argmax(dim=1)

    def logits(self, images: Tensor) -> Tensor:
        """It resizes them itself."""
        given = self.network(images)
        logits: Tensor = given if isinstance(given, Tensor) else given.logits
        return logits


class SegmenterJob(Job):
    """A random picture to its mask, in inference mode; or a loss and the gradients of all weights."""

    def __init__(self, network: Any, conditions: Conditions, task: Task) -> None:
        self.network = network.to(conditions.device).train(task.train and not task.frozen_norms)
        self.conditions, self.task = conditions, task
        generator = torch.Generator().manual_seed(SEED)
        batch, side = conditions.batch or 1, task.side
        self.images = torch.randn(batch, 3, side, side, generator=generator).to(conditions.device)
        self.labels = torch.randint(task.classes, (batch, side, side), generator=generator).to(conditions.device)
        self._loss, self._masks = network.loss, network.masks
        if conditions.compiled:
            self._loss, self._masks = torch.compile(network.loss), torch.compile(network.masks)

    def step(self) -> None:
        """A mask; or zero_grad, forward and backward."""
        if self.task.train:
            self._learn()
        else:
            self._infer()

    def outcome(self) -> Outcome:
        """Logits at every pixel; and the loss and the head's gradients, or the logits of the classes in the mask."""
        with torch.no_grad(), self.conditions.autocast():
            logits = self.network.logits(self.images).float()
        if not self.task.train:
            chosen = self._infer().long()
            return {"logits": logits, "logits of the mask": logits.gather(1, chosen[:, None])}
        loss = self._learn().detach()
        gradients = self._gradients() if self.conditions.precision == "bf16" else self._exact_gradients()
        return {"logits": logits, "loss": loss, **gradients}

    def _gradients(self) -> Outcome:
        grown = {name.partition(".")[2]: each.grad for name, each in self.network.named_parameters()}
        return {
            f"gradient of {name}": each
            for name, each in grown.items()
            if each is not None and name.startswith(self.task.compared)
        }

    def _exact_gradients(self) -> Outcome:
        """In double precision: in float32, as many values as lie next to a ReLU's edge fall to either side of it."""
        if self.conditions.compiled:
            return {}
        self.network.zero_grad(set_to_none=True)
        network, images = copy.deepcopy(self.network).double(), self.images[..., :ENOUGH, :ENOUGH].double()
        network.loss(images.requires_grad_(), self.labels[..., :ENOUGH, :ENOUGH]).backward()
        twin = copy.copy(self)
        twin.network = network
        assert images.grad is not None
        return {**twin._gradients(), "gradient of images": images.grad}

    def _infer(self) -> Tensor:
        with torch.inference_mode(), self.conditions.autocast():
            masks: Tensor = self._masks(self.images)
            return masks

    def _learn(self) -> Tensor:
        self.network.zero_grad(set_to_none=True)
        with self.conditions.autocast():
            loss: Tensor = self._loss(self.images, self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

"""Rows of heads that answer with masks, Mask2Former on Swin-T and EoMT on a ViT-S: a training step, and a picture to
masks, against transformers' models, from which ours have their weights."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.benchmarking.suite.detectors import doubles
from vitdense.benchmarking.suite.maps import enliven
from vitdense.contracts import Batch
from vitdense.loading import load_model

CLASSES = 133
Segments = list[tuple[Tensor, Tensor]]
"""Of each picture the labels (N,) and the masks (N, H, W) bool."""
NOTES = (
    "A training step is forward, matching and losses of all layers at 12544 points, and backward, without the "
    "optimizer; nobody drops paths. Both draw the same random points.",
    "Of Mask2Former gradients are compared in double precision, on small pictures.",
)


class Network(Protocol):
    """What a contender does, besides being a module."""

    def learn(self, images: Tensor, segments: Segments) -> Tensor:
        """images: (B, 3, H, W) -> the loss."""

    def find(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, 3, H, W) -> logits (B, Q, K + 1) and masks (B, Q, h, w)."""


class Ours(nn.Module):
    """What a folder of transformers' holds."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        model = load_model(folder)
        self.backbone, self.head = model.backbone, model.head

    def learn(self, images: Tensor, segments: Segments) -> Tensor:
        """As training calls it."""
        batch: Batch = {"images": images, "targets": [{"labels": each, "masks": masks} for each, masks in segments]}
        losses = self.head.losses(self.head(self.head.look(self.backbone, images, batch), batch), batch)
        return torch.stack(list(losses.values())).sum()

    def find(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As inference calls it."""
        outputs = self.head(self.head.look(self.backbone, images), {"images": images})
        return outputs["logits"], outputs["masks"]


class Transformers(nn.Module):
    """A model of transformers as it comes."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def learn(self, images: Tensor, segments: Segments) -> Tensor:
        """As its trainer calls it."""
        masks = [each.to(images.dtype) for _, each in segments]
        loss: Tensor = self.network(images, mask_labels=masks, class_labels=[each for each, _ in segments]).loss
        return loss

    def find(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As inference calls it."""
        found = self.network(images)
        return found.class_queries_logits, found.masks_queries_logits


@dataclass(frozen=True)
class Kind:
    """What makes transformers' network, tiny or not; the side of pictures, of the tiny one too; whether it can run in
    double precision, and whether a step is one of training."""

    build: Callable[[bool], Any]
    side: int
    tiny_side: int
    doubles: bool
    trains: bool


class MaskJob(Job):
    """Random pictures of eight segments: forward, loss and backward, or to masks."""

    def __init__(self, network: Any, conditions: Conditions, kind: Kind) -> None:
        self.network: Any = network.to(conditions.device).train(kind.trains)
        self.conditions, self.kind = conditions, kind
        self.images, self.segments = self._pictures(kind.tiny_side if conditions.tiny else kind.side)
        self.learn, self.find = network.learn, network.find
        if conditions.compiled:
            self.learn, self.find = torch.compile(network.learn), torch.compile(network.find)

    def step(self) -> None:
        """zero_grad, forward, loss and backward; or forward."""
        if self.kind.trains:
            self._run()
        else:
            self._look()

    def outcome(self) -> Outcome:
        """Logits and masks; of training the loss too, and where it can be in double precision the images' gradient."""
        if not self.kind.trains:
            return self._look()
        loss = self._run().detach()
        self.network.eval()
        found = {**self._look(), "loss": loss}
        self.network.train()
        if self.conditions.compiled or self.conditions.precision == "bf16" or not self.kind.doubles:
            return found
        network = copy.deepcopy(self.network).double()
        images, segments = self._pictures(self.kind.tiny_side)
        exact = images.double().requires_grad_()
        with doubles():
            torch.manual_seed(SEED)
            loss = network.learn(exact, segments)
        loss.backward()
        assert exact.grad is not None
        return {**found, "loss in double precision": loss.detach(), "gradient of images": exact.grad}

    def _pictures(self, side: int) -> tuple[Tensor, Segments]:
        generator = torch.Generator().manual_seed(SEED)
        count = self.conditions.batch or (2 if self.kind.trains else 1)
        images = torch.randn(count, 3, side, side, generator=generator)
        segments = []
        for _ in range(count):
            coarse = torch.randint(8, (1, 1, 4, 4), generator=generator).float()
            owners = F.interpolate(coarse, (side, side))[0, 0]
            masks = torch.stack([owners == number for number in range(8)])
            labels = torch.randint(5, (8,), generator=generator)
            segments.append((labels.to(self.conditions.device), masks.to(self.conditions.device)))
        return images.to(self.conditions.device), segments

    def _look(self) -> Outcome:
        with torch.inference_mode(), self.conditions.autocast():
            logits, masks = self.find(self.images)
        return {"logits": logits, "masks": masks}

    def _run(self) -> Tensor:
        self.network.zero_grad(set_to_none=True)
        torch.manual_seed(SEED)
        with self.conditions.autocast():
            loss: Tensor = self.learn(self.images, self.segments)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss


def _mask2former(tiny: bool) -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    swin: Any = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "drop_path_rate": 0.0}
    small: Any = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]} if tiny else {}
    rest: Any = {"num_labels": CLASSES}
    if tiny:
        widths = ("hidden_dim", "feature_size", "mask_feature_size", "dim_feedforward", "encoder_feedforward_dim")
        rest |= {name: 32 for name in widths} | {"encoder_layers": 1, "decoder_layers": 3, "num_queries": 9}
    make: Any = Mask2FormerConfig
    return Mask2FormerForUniversalSegmentation(make(backbone_config=SwinConfig(**swin, **small), **rest))


def _eomt(tiny: bool, trains: bool) -> Any:
    from transformers import EomtConfig, EomtForUniversalSegmentation

    small: Any = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "num_queries": 9}
    full: Any = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "num_queries": 100}
    make: Any = EomtConfig
    side = 64 if tiny else 256
    network: Any = EomtForUniversalSegmentation(make(**(small if tiny else full), image_size=side, num_labels=CLASSES))
    network.attn_mask_probs.fill_(float(trains))  # in training masks limit all queries, after it none
    return network


def _row(name: str, summary: str, kind: Kind, goal: Goal) -> Row:
    def theirs(conditions: Conditions) -> MaskJob:
        return MaskJob(enliven(Transformers(kind.build(conditions.tiny))), conditions, kind)

    def twin(network: Any, conditions: Conditions) -> MaskJob:
        with TemporaryDirectory() as folder:
            network.save_pretrained(folder)
            return MaskJob(Ours(Path(folder)), conditions, kind)

    def ours(conditions: Conditions) -> MaskJob:
        network: Any = enliven(Transformers(kind.build(conditions.tiny)))
        return twin(network.network, conditions)

    def pair(conditions: Conditions) -> Pair:
        job = theirs(conditions)
        return Pair(twin(job.network.network, conditions), job)

    peer = Peer("transformers", "transformers", theirs, pair)
    return Row(name, summary, ours, (peer,), {"cpu": goal}, NOTES if kind.trains else ())


_GOAL = Goal(0.75, 0.60)
ROWS = (
    _row(
        "mask2former_train",
        "Mask2Former on Swin-T, 2 x 256 x 256, 100 queries, 10 layers of losses, forward, loss and backward",
        Kind(_mask2former, 256, 64, doubles=True, trains=True),
        _GOAL,
    ),
    _row(
        "mask2former_mask",
        "Mask2Former on Swin-T, 1 x 384 x 384, 100 queries, a picture to classes and masks",
        Kind(_mask2former, 384, 64, doubles=True, trains=False),
        _GOAL,
    ),
    _row(
        "eomt_train",
        "EoMT on ViT-S/16, 2 x 256 x 256, 100 queries through 4 blocks, forward, loss and backward",
        Kind(lambda tiny: _eomt(tiny, True), 256, 64, doubles=False, trains=True),
        _GOAL,
    ),
    _row(
        "eomt_latency",
        "EoMT on ViT-S/16, 1 x 256 x 256, 100 queries through 4 blocks, a picture to classes and masks",
        Kind(lambda tiny: _eomt(tiny, False), 256, 64, doubles=False, trains=False),
        _GOAL,
    ),
)

"""Rows of RT-DETR on ResNet-50vd: a training step with denoising, and a picture to the things in it."""

import copy
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.benchmarking.suite.maps import enliven
from vitdense.contracts import Batch, Target
from vitdense.loading import load_model

THINGS = 8
"""In each picture."""
NOISE = 1e-9
"""Gradients below are rounding alone: of what is added to all keys alike, or to a whole map before a batch norm."""
NOTES = (
    "A training step is forward, loss and backward, without the optimizer, with eight things in each picture and about "
    "a hundred denoising queries a group of which is as many positives as negatives; the backbone's norms are frozen.",
    "A picture to its things is the network and the post-processing of a picture that is on the device already.",
    "Outcomes are compared in double precision, on the tiny row's side or 256 x 256: queries are the best of thousands "
    "of cells, whose order differs where two scores are as near as float32 rounds.",
    "transformers' attention is eager where it is compared: with its mask of float32, torch's own attention of doubles "
    "gives other numbers on a CPU.",
)


@dataclass(frozen=True)
class DetectorSize:
    """A ResNet below, widths and layers of the head, queries, classes, and the side of pictures to train on and to look
    at."""

    backbone: dict[str, Any]
    head: dict[str, Any]
    classes: int
    train_side: int
    side: int
    compared_side: int = 256


FULL = DetectorSize({}, {}, 80, 512, 640)
_CHANNELS = [12, 16, 20]
TINY = DetectorSize(
    {"hidden_sizes": [8, *_CHANNELS], "depths": [1, 1, 1, 1], "embedding_size": 8, "layer_type": "basic"},
    {
        "encoder_hidden_dim": 16,
        "encoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "encoder_in_channels": _CHANNELS,
        "d_model": 16,
        "decoder_in_channels": [16, 16, 16],
        "decoder_ffn_dim": 16,
        "decoder_attention_heads": 2,
        "decoder_layers": 2,
        "num_queries": 20,
    },
    5,
    96,
    96,
    96,
)


class Ours(nn.Module):
    """What a folder of transformers' holds, by our backbone and the head that the plugin `heads` brings."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        model = load_model(folder)
        self.backbone, self.head = model.backbone, model.head

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """As training calls it."""
        batch: Batch = {"images": images, "targets": targets}
        return self.head.losses(self.head(self.backbone(images), batch), batch)

    def answers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes."""
        outputs = self.head(self.backbone(images), {"images": images})
        return outputs["logits"], outputs["boxes_cxcywh"]

    def things(self, images: Tensor) -> Any:
        """As inference on whole pictures calls it."""
        batch: Batch = {"images": images, "sizes": [(images.shape[2], images.shape[3])] * len(images)}
        return self.head.predict(self.head(self.backbone(images), batch), batch)

    def gradients(self) -> dict[str, Tensor]:
        """Of the head's parameters."""
        named = self.head.named_parameters()
        return {name.removeprefix("selection."): each.grad for name, each in named if each.grad is not None}

    def exact(self) -> None:
        """Nothing is to be changed for double precision."""


class Transformers(nn.Module):
    """RTDetrV2ForObjectDetection as it comes."""

    def __init__(self, size: DetectorSize) -> None:
        from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection
        from transformers.models.rt_detr.image_processing_rt_detr import RTDetrImageProcessor

        super().__init__()
        options: dict[str, Any] = {**size.backbone, "out_indices": [2, 3, 4]}
        options = {**size.head, "num_labels": size.classes, "backbone_config": RTDetrResNetConfig(**options)}
        config: Any = RTDetrV2Config(**options)
        self.network: Any = RTDetrV2ForObjectDetection(config)
        self.processor: Any = RTDetrImageProcessor()

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Under our names."""
        scale = images.new_tensor([images.shape[3], images.shape[2]]).repeat(2)
        labels = []
        for target in targets:
            corners = target["boxes"] / scale
            boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
            labels.append({"class_labels": target["labels"], "boxes": boxes})
        found, last = {}, self.network.config.decoder_layers - 1
        for name, value in self.network(images, labels=labels).loss_dict.items():
            kind, _, index = name.partition("_aux_")
            renamed = f"{kind}_encoder_0" if index == str(last) else f"{kind}_{index}"
            found[renamed if index else kind] = value
        return found

    def answers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes."""
        outputs = self.network(images)
        return outputs.logits, outputs.pred_boxes

    def things(self, images: Tensor) -> Any:
        """As its image processor finds them."""
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        return self.processor.post_process_object_detection(self.network(images), threshold=0.0, target_sizes=sizes)

    def gradients(self) -> dict[str, Tensor]:
        """Of the head's parameters, under our names, which are those of its files where its models have others."""
        named = self.network.model.named_parameters()
        return {name: each.grad for name, each in named if each.grad is not None and not name.startswith("backbone.")}

    def exact(self) -> None:
        """See NOTES."""
        self.network.set_attn_implementation("eager")


class DetectorJob(Job):
    """Random pictures to things in inference mode, or to losses and the gradients of all weights."""

    def __init__(self, network: Any, conditions: Conditions, size: DetectorSize, *, train: bool) -> None:
        self.network = network.to(conditions.device).train(train)
        self.conditions, self.size, self.train = conditions, size, train
        side = size.train_side if train else size.side
        self.images, self.targets = self._batch(side, torch.float32, conditions.batch or (2 if train else 1))
        self._losses, self._things = network.losses, network.things
        if conditions.compiled:
            self._losses, self._things = torch.compile(network.losses), torch.compile(network.things)

    def step(self) -> None:
        """Things; or zero_grad, forward and backward."""
        if not self.train:
            with torch.inference_mode(), self.conditions.autocast():
                self._things(self.images)
            return
        self.network.zero_grad(set_to_none=True)
        with self.conditions.autocast():
            losses = self._losses(self.images, self.targets)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]

    def outcome(self) -> Outcome:
        """Logits and boxes; of a training step every loss and gradient, those of the pictures too."""
        network = copy.deepcopy(self.network).double()
        network.exact()
        network.zero_grad(set_to_none=True)
        with _double():
            images, targets = self._batch(self.size.compared_side, torch.float64, 2)
            with torch.no_grad():
                logits, boxes = network.answers(images)
            if not self.train:
                return {"logits": logits, "boxes": boxes}
            torch.manual_seed(SEED)
            losses = network.losses(images.requires_grad_(), targets)
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        assert images.grad is not None
        found = {"logits": logits, "boxes": boxes, "gradient of images": images.grad}
        found |= {name: each.detach() for name, each in losses.items()}
        grown = {name: each for name, each in network.gradients().items() if each.abs().max() > NOISE}
        return found | {f"gradient of {name}": each for name, each in grown.items()}

    def _batch(self, side: int, dtype: torch.dtype, count: int) -> tuple[Tensor, list[Target]]:
        generator, device = torch.Generator().manual_seed(SEED), self.conditions.device
        images = torch.rand(count, 3, side, side, generator=generator).to(device, dtype)
        targets: list[Target] = []
        for _ in range(count):
            corners = torch.rand(THINGS, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
            corners[:, 2:] = corners[:, 2:].clamp(max=0.9) + 0.1  # as wide as a tenth of the picture at least
            labels = torch.randint(self.size.classes, (THINGS,), generator=generator)
            targets.append({"boxes": (corners * side).to(device, dtype), "labels": labels.to(device)})
        return images, targets


@contextmanager
def _double() -> Any:
    """transformers' noise has the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _row(name: str, summary: str, *, train: bool, cpu: Goal, cuda: Goal) -> Row:
    def size_of(conditions: Conditions) -> DetectorSize:
        return TINY if conditions.tiny else FULL

    def theirs(conditions: Conditions) -> DetectorJob:
        size = size_of(conditions)
        return DetectorJob(enliven(Transformers(size)), conditions, size, train=train)

    def twin(job: DetectorJob, conditions: Conditions) -> DetectorJob:
        with TemporaryDirectory() as folder:
            job.network.network.save_pretrained(folder)
            return DetectorJob(Ours(Path(folder)), conditions, size_of(conditions), train=train)

    def ours(conditions: Conditions) -> DetectorJob:
        return twin(theirs(conditions), conditions)

    def pair(conditions: Conditions) -> Pair:
        job = theirs(conditions)
        return Pair(twin(job, conditions), job)

    build: Callable[[Conditions], Job] = theirs
    peers = (Peer("transformers", "transformers", build, pair),)
    return Row(name, summary, ours, peers, {"cpu": cpu, "cuda": cuda}, NOTES)


ROWS = (
    _row(
        "rtdetr_r50_train",
        "RT-DETRv2 on ResNet-50vd, two pictures of 512 x 512, 80 classes, forward, losses and backward",
        train=True,
        cpu=Goal(0.75, 0.70),
        cuda=Goal(0.75, 0.70),
    ),
    _row(
        "rtdetr_r50_latency",
        "RT-DETRv2 on ResNet-50vd, a picture of 640 x 640 to its things",
        train=False,
        cpu=Goal(0.75, 0.75),
        cuda=Goal(0.75, 0.75),
    ),
)

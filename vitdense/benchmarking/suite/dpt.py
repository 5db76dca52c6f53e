"""Rows of DPT on ViT-B/16: a 512 x 512 picture to its mask of 150 classes, and a training step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from vitdense.benchmarking.rows import Conditions, Goal, Pair, Peer, Row
from vitdense.benchmarking.suite.maps import MapsWork, enliven
from vitdense.benchmarking.suite.segmenters import GRADIENTS, ByLogits, SegmenterJob, Task
from vitdense.benchmarking.suite.vit import BASE, ViTSize, _timm_maps
from vitdense.build import create_backbone
from vitdense.contracts import HEADS, Batch
from vitdense.loading import load_model

NOTES = (
    "A training step is forward, loss and backward, without the optimizer. The class token is projected, "
    "residual units have batch norm, as published for ADE20K; nobody has dropout or an auxiliary head.",
    "transformers crashes on labels without an auxiliary head; its loss is computed outside.",
    GRADIENTS,
    "segmentation-models-pytorch has one residual unit more, on the coarsest level, so that it is another network; "
    "only its backbone is compared with ours, and the whole is timed.",
)


@dataclass(frozen=True)
class DPTSize:
    """A ViT below, the widths of the four maps and of their fusion, and the classes."""

    vit: ViTSize
    widths: tuple[int, int, int, int]
    channels: int
    classes: int


TINY = ViTSize(64, 16, 48, 12, 3)  # of twelve blocks: smp has another meaning for what timm calls depth
FULL = DPTSize(BASE, (96, 192, 384, 768), 256, 150)
SMALL = DPTSize(TINY, (8, 12, 16, 20), 16, 7)


class Ours(nn.Module):
    """A backbone and an adapter of ours, and the head that the plugin `heads` brings; or what a folder holds."""

    def __init__(self, size: DPTSize, folder: Path | None = None) -> None:
        super().__init__()
        if folder is not None:
            model = load_model(folder)
            self.backbone, self.head = model.backbone, model.head
            return
        adapter = {"name": "reassemble", "readout": "project", "channels": size.widths}
        options = {**size.vit.options(), "norm_maps": False, "adapter": adapter}
        self.backbone = create_backbone("vit_base_patch16", **options)
        head = {"channels": size.channels, "batch_norm": True, "auxiliary_weight": 0.0, "dropout": 0.0}
        config = HEADS.create("dpt", {"num_classes": size.classes, **head})
        self.head = config.build(self.backbone.levels)

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """As training calls it."""
        batch: Batch = {"images": images, "masks": masks, "lean": True}
        losses = self.head.losses(self.head(self.backbone(images), batch), batch)
        return torch.stack(list(losses.values())).sum()

    def masks(self, images: Tensor) -> Tensor:
        """As inference on whole pictures calls it."""
        batch: Batch = {"images": images, "sizes": [(images.shape[2], images.shape[3])] * len(images), "lean": True}
        return torch.stack(self.head.predict(self.head(self.backbone(images), batch), batch))

    def logits(self, images: Tensor) -> Tensor:
        """At the size of the pictures."""
        logits: Tensor = self.head(self.backbone(images), {"images": images})["logits"]
        return logits


class Transformers(ByLogits):
    """DPTForSemanticSegmentation as it comes."""

    def __init__(self, size: DPTSize) -> None:
        from transformers import DPTConfig, DPTForSemanticSegmentation

        super().__init__()
        config: Any = DPTConfig(
            **size.vit.transformers_options(),
            backbone_out_indices=size.vit.indices,
            neck_hidden_sizes=list(size.widths),
            fusion_hidden_size=size.channels,
            use_batch_norm_in_fusion_residual=True,
            use_auxiliary_head=False,
            semantic_classifier_dropout=0.0,
        )
        config.num_labels = size.classes
        self.network: Any = DPTForSemanticSegmentation(config)


class Smp(ByLogits):
    """DPT of segmentation-models-pytorch over timm's ViT."""

    def __init__(self, size: DPTSize) -> None:
        import segmentation_models_pytorch

        super().__init__()
        assert size.vit.depth == TINY.depth
        options = {name: each for name, each in size.vit.timm_options().items() if name != "depth"}
        self.network: Any = segmentation_models_pytorch.DPT(
            "tu-vit_base_patch16_224",
            encoder_weights=None,
            encoder_output_indices=size.vit.indices,
            decoder_intermediate_channels=size.widths,
            decoder_fusion_channels=size.channels,
            classes=size.classes,
            img_size=size.vit.side,
            **options,
        )
        for module in self.network.segmentation_head.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0


def _row(name: str, summary: str, *, train: bool, cpu: Goal, cuda: Goal) -> Row:
    def start(network: nn.Module, conditions: Conditions) -> SegmenterJob:
        size = SMALL if conditions.tiny else FULL
        compared = ("neck.convs.", "neck.fusion_stage.", "head.")
        task = Task(size.vit.side, size.classes, compared=compared, train=train, frozen_norms=False)
        return SegmenterJob(network, conditions, task)

    def job(build: Callable[[DPTSize], nn.Module]) -> Callable[[Conditions], SegmenterJob]:
        def made(conditions: Conditions) -> SegmenterJob:
            return start(enliven(build(SMALL if conditions.tiny else FULL)), conditions)

        return made

    def pair(conditions: Conditions) -> Pair:
        theirs = job(Transformers)(conditions)
        with TemporaryDirectory() as folder:
            theirs.network.network.save_pretrained(folder)
            twin = Ours(SMALL if conditions.tiny else FULL, Path(folder))
        return Pair(start(twin, conditions), theirs)

    below = MapsWork("vit_base_patch16", BASE, TINY, train).against(
        "smp", "segmentation_models_pytorch", _smp_backbone, _timm_maps
    )
    peers = (
        Peer("transformers", "transformers", job(Transformers), pair),
        Peer("smp", "segmentation_models_pytorch", job(Smp), below.pair),
    )
    return Row(name, summary, job(Ours), peers, {"cpu": cpu, "cuda": cuda}, NOTES)


def _smp_backbone(size: ViTSize) -> nn.Module:
    backbone: nn.Module = Smp(DPTSize(size, (8, 8, 8, 8), 8, 2)).network.encoder.model
    return backbone


ROWS = (
    _row(
        "dpt_b_train",
        "DPT on ViT-B/16, 512 x 512, 150 classes, forward, loss and backward",
        train=True,
        cpu=Goal(0.75, 0.50),
        cuda=Goal(0.65, 0.45),
    ),
    _row(
        "dpt_b_mask",
        "DPT on ViT-B/16, 512 x 512, 150 classes, picture to mask",
        train=False,
        cpu=Goal(0.75, 0.40),
        cuda=Goal(0.65, 0.40),
    ),
)

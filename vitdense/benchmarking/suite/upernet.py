"""Rows of UperNet on Swin-T: a 512 x 512 picture to its mask of 150 classes, and a training step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.benchmarking.rows import Conditions, Goal, Pair, Peer, Row
from vitdense.benchmarking.suite.maps import MapsWork, enliven
from vitdense.benchmarking.suite.segmenters import GRADIENTS, ByLogits, SegmenterJob, Task
from vitdense.benchmarking.suite.swin import SWIN_T, TINY, SwinSize, _timm_maps
from vitdense.build import create_backbone
from vitdense.contracts import HEADS

NOTES = (
    "A training step is forward, loss and backward, without the optimizer. Batch norm stands in evaluation, since one "
    "picture has no statistics; nobody has dropout or an auxiliary head.",
    GRADIENTS,
    "segmentation-models-pytorch norms the backbone's maps before its decoder, so that it is another network; "
    "only its backbone is compared with ours (in its window order), and the whole is timed.",
)


@dataclass(frozen=True)
class UperNetSize:
    """A Swin below, the width of the decoder, and the classes."""

    swin: SwinSize
    channels: int
    classes: int


FULL = UperNetSize(SWIN_T, 512, 150)
SMALL = UperNetSize(TINY, 24, 7)


class Ours(nn.Module):
    """A backbone of ours and the head that the plugin `heads` brings."""

    def __init__(self, size: UperNetSize, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        below = None if weights is None else _part(weights, "backbone.")
        self.backbone = create_backbone("swin_tiny", **size.swin.options(), weights=below)
        options = {"channels": size.channels, "auxiliary_weight": 0.0, "dropout": 0.0}
        config = HEADS.create("upernet", {"num_classes": size.classes, **options})
        self.head = config.build(self.backbone.levels)
        if weights is not None:
            above = {name: each for name, each in weights.items() if name.startswith("decode_head.")}
            self.head.load_state_dict(above)

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """The head's own loss."""
        outputs = self.head(self.backbone(images), {})
        losses = self.head.losses(outputs, {"images": images, "masks": masks})
        return torch.stack(list(losses.values())).sum()

    def masks(self, images: Tensor) -> Tensor:
        """The head's own predictions."""
        outputs = self.head(self.backbone(images), {})
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        return torch.stack(self.head.predict(outputs, {"sizes": sizes}))

    def logits(self, images: Tensor) -> Tensor:
        """At the size of the pictures."""
        return _resize(self.head(self.backbone(images), {})["logits"], images)


class Transformers(ByLogits):
    """UperNetForSemanticSegmentation as it comes."""

    def __init__(self, size: UperNetSize) -> None:
        from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

        super().__init__()
        swin = SwinConfig(  # type: ignore[call-arg]  # out_features is a property, which their stubs leave out
            image_size=size.swin.side,
            embed_dim=size.swin.embed_dim,
            depths=list(size.swin.depths),
            num_heads=list(size.swin.num_heads),
            out_features=["stage1", "stage2", "stage3", "stage4"],
            drop_path_rate=0.0,
        )
        config: Any = UperNetConfig(backbone_config=swin, hidden_size=size.channels, use_auxiliary_head=False)
        config.num_labels = size.classes
        self.network: Any = UperNetForSemanticSegmentation(config)

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """As it counts it."""
        loss: Tensor = self.network(images, labels=masks).loss
        return loss


class Smp(ByLogits):
    """UPerNet of segmentation-models-pytorch over timm's Swin."""

    def __init__(self, size: UperNetSize) -> None:
        import segmentation_models_pytorch

        super().__init__()
        self.network: Any = segmentation_models_pytorch.UPerNet(
            "tu-swin_tiny_patch4_window7_224",
            encoder_weights=None,
            classes=size.classes,
            decoder_channels=size.channels,
            img_size=size.swin.side,
            drop_path_rate=0.0,
            **size.swin.options(),
        )


def _row(name: str, summary: str, *, train: bool, cpu: Goal, cuda: Goal) -> Row:
    def start(network: nn.Module, conditions: Conditions) -> SegmenterJob:
        size = SMALL if conditions.tiny else FULL
        task = Task(size.swin.side, size.classes, compared=("decode_head.",), train=train, frozen_norms=True)
        return SegmenterJob(network, conditions, task)

    def job(build: Callable[[UperNetSize], nn.Module]) -> Callable[[Conditions], SegmenterJob]:
        def made(conditions: Conditions) -> SegmenterJob:
            return start(enliven(build(SMALL if conditions.tiny else FULL)), conditions)

        return made

    def pair(conditions: Conditions) -> Pair:
        size, theirs = SMALL if conditions.tiny else FULL, job(Transformers)(conditions)
        twin = Ours(size, _part(theirs.network.state_dict(), "network."))
        return Pair(start(twin, conditions), theirs)

    swin = MapsWork("swin_tiny", SWIN_T, TINY, train)
    rolled = {"norm_maps": False, "window_order": "roll_pad"}
    below = swin.against("smp", "segmentation_models_pytorch", _smp_backbone, _timm_maps, rolled)
    peers = (
        Peer("transformers", "transformers", job(Transformers), pair),
        Peer("smp", "segmentation_models_pytorch", job(Smp), below.pair),
    )
    return Row(name, summary, job(Ours), peers, {"cpu": cpu, "cuda": cuda}, NOTES)


def _smp_backbone(size: SwinSize) -> nn.Module:
    backbone: nn.Module = Smp(UperNetSize(size, 8, 2)).network.encoder.model
    return backbone


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}


def _resize(logits: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(logits, size=like.shape[2:], mode="bilinear", align_corners=False)


ROWS = (
    _row(
        "upernet_swin_t_train",
        "UperNet on Swin-T, 512 x 512, 150 classes, forward, loss and backward",
        train=True,
        cpu=Goal(0.60, 0.40),
        cuda=Goal(0.45, 0.35),
    ),
    _row(
        "upernet_swin_t_mask",
        "UperNet on Swin-T, 512 x 512, 150 classes, picture to mask",
        train=False,
        cpu=Goal(0.50, 0.35),
        cuda=Goal(0.45, 0.30),
    ),
)

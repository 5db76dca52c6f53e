"""Rows of DETR: matching by itself, and a training step on ResNet-50."""

from typing import Any

import torch
from torch import Tensor, nn

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.benchmarking.suite.detectors import Extent, detector_row
from vitdense.contracts import HEADS, Batch, Level

_SIDE = 512.0


class MatchingJob(Job):
    """Queries of six decoder layers, matched with about ten things in each of sixteen pictures."""

    def __init__(self, conditions: Conditions) -> None:
        generator = torch.Generator().manual_seed(SEED)
        layers, batch, queries, classes = (2, 3, 12, 5) if conditions.tiny else (6, conditions.batch or 16, 300, 80)
        shape = (layers, batch, queries)
        self.logits = torch.randn(*shape, classes, generator=generator).to(conditions.device)
        self.boxes = (0.1 + 0.3 * torch.rand(*shape, 4, generator=generator)).to(conditions.device)
        counts = torch.randint(5, 16, (batch,), generator=generator).tolist()
        self.labels = [torch.randint(classes, (count,), generator=generator).to(conditions.device) for count in counts]
        self.wanted = [
            (0.2 + 0.3 * torch.rand(count, 4, generator=generator)).to(conditions.device) for count in counts
        ]

    def step(self) -> None:
        """All layers of a batch."""
        self.pairs()

    def outcome(self) -> Outcome:
        """The target of each query, or -1."""
        owner = torch.full(self.logits.shape[:3], -1)
        for layer, found in enumerate(self.pairs()):
            for picture, (queries, targets) in enumerate(found):
                owner[layer, picture, queries] = targets
        return {"targets of queries": owner.float()}

    def pairs(self) -> list[list[tuple[Tensor, Tensor]]]:
        """Of each layer and picture: indices of queries, and of the targets they answer for."""
        raise NotImplementedError


class OurMatching(MatchingJob):
    """The head's own, from the boxes of a batch in pixels on."""

    def __init__(self, conditions: Conditions) -> None:
        super().__init__(conditions)
        config = HEADS.create("deformable_detr", {"num_classes": self.logits.shape[-1], "channels": 32})
        self.head: Any = config.build((Level(8, 8),))
        targets = []
        for labels, boxes in zip(self.labels, self.wanted, strict=True):
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=-1)
            targets.append({"labels": labels, "boxes": corners * _SIDE})
        images = self.logits.new_zeros(1, 1, 1, 1).expand(len(targets), 1, int(_SIDE), int(_SIDE))
        self.batch: Batch = {"images": images, "targets": targets}  # type: ignore[typeddict-item]

    def step(self) -> None:
        """Targets are read, and matched."""
        self.matches()

    def matches(self) -> Any:
        """The head's matches, and its targets."""
        targets = self.head.read_targets(self.batch, self.logits)
        return self.head.match(self.logits, self.boxes, targets, self.batch), targets

    def pairs(self) -> list[list[tuple[Tensor, Tensor]]]:
        """By picture."""
        matches, targets = self.matches()
        starts = torch.tensor(targets.starts)
        return [
            [
                (
                    queries[matches.pictures == picture].cpu(),
                    owners[matches.pictures == picture].cpu() - starts[picture],
                )
                for picture in range(len(self.labels))
            ]
            for queries, owners in zip(matches.queries, matches.targets, strict=True)
        ]


class TheirMatching(MatchingJob):
    """transformers' DeformableDetrHungarianMatcher, called for each layer, as its losses do."""

    def __init__(self, conditions: Conditions) -> None:
        from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

        super().__init__(conditions)
        make: Any = DeformableDetrHungarianMatcher
        self.matcher: Any = make(class_cost=2, bbox_cost=5, giou_cost=2)
        self.targets = [
            {"class_labels": labels, "boxes": boxes} for labels, boxes in zip(self.labels, self.wanted, strict=True)
        ]

    def pairs(self) -> list[list[tuple[Tensor, Tensor]]]:
        """As it gives them."""
        layers = zip(self.logits, self.boxes, strict=True)
        return [self.matcher({"logits": logits, "pred_boxes": boxes}, self.targets) for logits, boxes in layers]


def _matching_row() -> Row:
    def pair(conditions: Conditions) -> Pair:
        return Pair(OurMatching(conditions), TheirMatching(conditions))

    return Row(
        "matcher",
        "6 decoder layers, 16 pictures, 300 queries, 80 classes, 5 to 15 things a picture",
        OurMatching,
        (Peer("transformers", "transformers", TheirMatching, pair),),
        {"cpu": Goal(0.08, 0.25)},
        ("Ours reads the targets in pixels too; transformers has them in shares of the picture.",),
    )


def _detr(extent: Extent) -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection

    make: Any = DetrConfig
    config = make(**(extent.options() | {"num_queries": min(extent.queries, 100)}))
    return DetrForObjectDetection(config)


ROWS = (
    _matching_row(),
    detector_row(
        "detr_r50_train",
        "DETR on ResNet-50, 2 x 512 x 512, 100 queries, forward, loss and backward",
        _detr,
        Goal(0.80, 0.75),
    ),
)

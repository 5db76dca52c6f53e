"""Rows between a head's logits and the pixels: loss and classes of upsampled logits, and the counts of mean IoU."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.contracts import IGNORE
from vitdense.metrics.segmentation import count_pairs
from vitdense.ops.upsampled_argmax import upsampled_argmax
from vitdense.ops.upsampled_cross_entropy import upsampled_cross_entropy

STRIDE = 4
Loss = Callable[[Tensor, Tensor], Tensor]
Classify = Callable[[Tensor, tuple[int, int]], Tensor]
Count = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Extent:
    """Pictures, classes, and the side of the masks."""

    batch: int
    classes: int
    side: int

    @property
    def cells(self) -> int:
        """The side of the logits."""
        return self.side // STRIDE


TINY = Extent(3, 20, 64)


def _extent(conditions: Conditions, batch: int) -> Extent:
    extent = TINY if conditions.tiny else Extent(batch, 150, 512)
    return replace(extent, batch=conditions.batch or extent.batch)


def _areas(extent: Extent, generator: torch.Generator) -> Tensor:
    """Masks (B, H, W) of square areas, some without a label."""
    shape = (extent.batch, 1, extent.side // 16, extent.side // 16)
    areas = torch.randint(IGNORE, extent.classes, shape, generator=generator).float()
    return F.interpolate(areas, (extent.side, extent.side), mode="nearest")[:, 0].long()


class LossJob(Job):
    """Random logits and a loss of theirs: forward and backward, the gradient made anew."""

    def __init__(self, loss: Loss, conditions: Conditions) -> None:
        extent, generator = _extent(conditions, 2), torch.Generator().manual_seed(SEED)
        shape = (extent.batch, extent.classes, extent.cells, extent.cells)
        kind = torch.bfloat16 if conditions.precision == "bf16" else torch.float32
        logits = torch.randn(shape, generator=generator).to(conditions.device, kind)
        self.logits = logits.requires_grad_()
        self.masks = _areas(extent, generator).to(conditions.device)
        self.loss: Loss = torch.compile(loss) if conditions.compiled else loss

    def step(self) -> None:
        """Forward and backward."""
        self._learn()

    def outcome(self) -> Outcome:
        """The loss and its gradient."""
        loss = self._learn()
        assert self.logits.grad is not None
        return {"loss": loss.detach(), "logits' gradient": self.logits.grad}

    def _learn(self) -> Tensor:
        self.logits.grad = None
        loss = self.loss(self.logits, self.masks)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss


def _peer_loss(logits: Tensor, masks: Tensor) -> Tensor:
    resized = F.interpolate(logits.float(), masks.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(resized, masks, ignore_index=IGNORE)


class ClassesJob(Job):
    """Logits, smooth as a trained head's or random in each cell, to classes by pixel."""

    def __init__(self, classify: Classify, conditions: Conditions, *, smooth: bool) -> None:
        extent, generator = _extent(conditions, 2), torch.Generator().manual_seed(SEED)
        shape = (extent.batch, extent.classes, extent.cells, extent.cells)
        logits = torch.randn(shape, generator=generator)
        if smooth:
            coarse = 3 * torch.randn(*shape[:2], extent.cells // 16, extent.cells // 16, generator=generator)
            logits = 0.05 * logits + F.interpolate(coarse, shape[2:], mode="bicubic")
        kind = torch.bfloat16 if conditions.precision == "bf16" else torch.float32
        self.logits = logits.to(conditions.device, kind)
        self.size = (extent.side, extent.side)
        self.classify: Classify = torch.compile(classify) if conditions.compiled else classify

    def step(self) -> None:
        """Classes of all pixels."""
        self._classes()

    def outcome(self) -> Outcome:
        """The upsampled logits, in float64, of the classes chosen: equal but for rounding where either is right."""
        exact = F.interpolate(self.logits.double(), self.size, mode="bilinear", align_corners=False)
        return {"logits of the classes": exact.gather(1, self._classes()[:, None].long())}

    def _classes(self) -> Tensor:
        with torch.inference_mode():
            return self.classify(self.logits, self.size)


def _peer_classes(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False).argmax(dim=1)


class CountsJob(Job):
    """Masks and predictions, nine pixels in ten right, to counts of pairs."""

    def __init__(self, count: Count, conditions: Conditions) -> None:
        extent, generator = _extent(conditions, 32), torch.Generator().manual_seed(SEED)
        masks = _areas(extent, generator)
        guesses = torch.randint(0, extent.classes, masks.shape, generator=generator)
        right = torch.rand(masks.shape, generator=generator) < 0.9
        self.classes = extent.classes
        self.masks = masks.to(conditions.device, torch.int16)
        self.guesses = torch.where(right, masks.clamp_min(0), guesses).to(conditions.device, torch.uint8)
        self.count = count

    def step(self) -> None:
        """All counts."""
        self.count(self.masks, self.guesses, self.classes)

    def outcome(self) -> Outcome:
        """The counts of true and predicted classes, (K, K)."""
        return {"counts": self.count(self.masks, self.guesses, self.classes)}


def _our_counts(masks: Tensor, guesses: Tensor, classes: int) -> Tensor:
    return count_pairs(masks, guesses, classes)[:, :classes]


def _numpy_counts(masks: Tensor, guesses: Tensor, classes: int) -> Tensor:
    import numpy as np

    truth, guess = masks.cpu().numpy(), guesses.cpu().numpy()
    labelled = truth != IGNORE
    pairs = classes * truth[labelled].astype(np.int64) + guess[labelled]
    return torch.from_numpy(np.bincount(pairs, minlength=classes**2).reshape(classes, classes))


def _torchmetrics_counts(masks: Tensor, guesses: Tensor, classes: int) -> Tensor:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(guesses, masks, classes, ignore_index=IGNORE, validate_args=False)


def _peer(name: str, needs: str, ours: Callable[[Conditions], Job], theirs: Callable[[Conditions], Job]) -> Peer:
    return Peer(name, needs, theirs, lambda conditions: Pair(ours(conditions), theirs(conditions)))


def _loss_row() -> Row:
    def ours(conditions: Conditions) -> Job:
        return LossJob(upsampled_cross_entropy, conditions)

    return Row(
        "upsample_cross_entropy",
        "2 x 150 x 128 x 128 logits to the loss at 512 x 512, forward and backward",
        ours,
        (_peer("torch", "torch", ours, lambda conditions: LossJob(_peer_loss, conditions)),),
        {"cpu": Goal(0.25, 0.04), "cuda": Goal(0.15, 0.05)},
        ("torch: F.interpolate and F.cross_entropy. Both hold the last step's gradient, so that no peak counts it.",),
    )


def _classes_row(kind: str, *, cpu: Goal, cuda: Goal) -> Row:
    smooth = kind == "smooth"

    def ours(conditions: Conditions) -> Job:
        return ClassesJob(upsampled_argmax, conditions, smooth=smooth)

    def theirs(conditions: Conditions) -> Job:
        return ClassesJob(_peer_classes, conditions, smooth=smooth)

    return Row(
        f"upsample_argmax_{kind}",
        f"2 x 150 x 128 x 128 {kind} logits to classes at 512 x 512",
        ours,
        (_peer("torch", "torch", ours, theirs),),
        {"cpu": cpu, "cuda": cuda},
        ("torch: F.interpolate and argmax; what is compared are the logits of the classes chosen.",),
    )


def _counts_row() -> Row:
    def ours(conditions: Conditions) -> Job:
        return CountsJob(_our_counts, conditions)

    peers = (
        _peer("numpy", "numpy", ours, lambda conditions: CountsJob(_numpy_counts, conditions)),
        _peer("torchmetrics", "torchmetrics", ours, lambda conditions: CountsJob(_torchmetrics_counts, conditions)),
    )
    goals = {"cpu": Goal(0.30, 1.0)}
    return Row("miou", "32 masks of 512 x 512, 150 classes, to counts of pairs", ours, peers, goals)  # type: ignore[arg-type]


ROWS = (
    _loss_row(),
    _classes_row("smooth", cpu=Goal(0.08, 0.11), cuda=Goal(0.10, 0.05)),
    _classes_row("random", cpu=Goal(0.25, 0.11), cuda=Goal(0.20, 0.05)),
    _counts_row(),
)

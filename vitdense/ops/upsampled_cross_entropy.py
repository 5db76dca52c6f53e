"""Cross entropy of bilinearly upsampled logits without ever holding them: strips of rows, gradient made on the way."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import IGNORE
from vitdense.ops.eager import runs_eagerly
from vitdense.ops.interpolation import grid_of
from vitdense.ops.kernels import runs_as_kernel

VALUES = {"cpu": 2**20, "cuda": 2**25}
"""Logits of a strip: few enough for a CPU's cache, many enough for a GPU's launches."""
FAINT = -60.0
"""Below this, a logarithm of a float32 probability begins to lose digits."""


def upsampled_cross_entropy(
    logits: Tensor,
    masks: Tensor,
    *,
    align_corners: bool = False,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """logits (B, K, h, w), masks (B, H, W) of class indices or IGNORE -> (): the mean over labelled pixels.

    What `F.cross_entropy` gives of logits brought to (H, W) by `F.interpolate`, weighted mean and label smoothing
    included, in float32 or better; but 0 where no pixel has a label, which still reaches the logits. In the eager
    way no tensor has K * H * W values; while a graph is traced, torch's own operations are used.
    """
    terms = _Terms(align_corners, None if weights is None else weights.detach(), label_smoothing)
    if not runs_eagerly(logits, masks):
        return _plain(terms, logits, masks)
    if torch.is_grad_enabled() and logits.requires_grad:
        loss: Tensor = _UpsampledCrossEntropy.apply(terms, logits, masks)
        return loss
    total, count = _walk(terms, logits, masks, None)
    return (total / count).to(_precise(logits))


def cross_entropy(
    logits: Tensor, masks: Tensor, *, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """logits (B, K, H, W), masks (B, H, W) int64 -> (): torch's weighted mean, but 0 where no pixel has a label.

    Ignored pixels add nothing to the sum, so a batch without labels gives an exact 0 that still reaches every
    parameter (the usual `logits.sum() * 0` overflows in half precision).
    """
    weights = None if weights is None else weights.to(logits.dtype)
    labelled = masks != IGNORE
    total = F.cross_entropy(
        logits, masks, weight=weights, ignore_index=IGNORE, reduction="sum", label_smoothing=label_smoothing
    )
    count = labelled.sum().to(total.dtype) if weights is None else (weights[masks.clamp_min(0)] * labelled).sum()
    return total / torch.where(count > 0, count, torch.ones_like(count))


@dataclass(frozen=True)
class _Terms:
    align_corners: bool
    weights: Tensor | None
    label_smoothing: float


class _UpsampledCrossEntropy(torch.autograd.Function):
    """`_walk` with a way back, which is no more than a product."""

    @staticmethod
    def forward(ctx: Any, terms: _Terms, logits: Tensor, masks: Tensor) -> Tensor:
        ctx.terms = terms
        ctx.gradient = torch.zeros_like(logits, dtype=_precise(logits))
        total, ctx.count = _walk(terms, logits, masks, ctx.gradient)
        ctx.save_for_backward(logits, masks)
        return (total / ctx.count).to(_precise(logits))  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[None, Tensor, None]:
        logits, masks = ctx.saved_tensors
        if torch.is_grad_enabled():
            loss = _plain(ctx.terms, logits, masks)
            return None, torch.autograd.grad(loss, logits, above, create_graph=True)[0], None
        # Given away at the first time, so that it can be scaled in place; made again at the next, if there is one.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            gradient = torch.zeros_like(logits, dtype=_precise(logits))
            _walk(ctx.terms, logits, masks, gradient)
        return None, gradient.mul_(above / ctx.count).to(logits.dtype), None


def _precise(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _plain(terms: _Terms, logits: Tensor, masks: Tensor) -> Tensor:
    size = (masks.shape[-2], masks.shape[-1])
    resized = F.interpolate(logits.to(_precise(logits)), size, mode="bilinear", align_corners=terms.align_corners)
    return cross_entropy(resized, masks.long(), weights=terms.weights, label_smoothing=terms.label_smoothing)


@torch.no_grad()
def _walk(terms: _Terms, logits: Tensor, masks: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """logits (B, K, h, w), masks (B, H, W) -> the sum over all pixels and what to divide it by, () in float64.

    The sum's gradient is added to `gradient`, (B, K, h, w) zeros, if it is given.
    """
    total, count = (_walk_by_kernels if runs_as_kernel(logits) else _walk_by_strips)(terms, logits, masks, gradient)
    return total, torch.where(count > 0, count, torch.ones_like(count))


def _walk_by_kernels(terms: _Terms, logits: Tensor, masks: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    from vitdense.ops.upsampled_cross_entropy_triton import walk_by_kernels

    return walk_by_kernels(
        logits,
        masks,
        gradient,
        align_corners=terms.align_corners,
        weights=terms.weights,
        label_smoothing=terms.label_smoothing,
    )


def _walk_by_strips(terms: _Terms, logits: Tensor, masks: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    total, count = torch.zeros(2, dtype=torch.float64, device=logits.device)
    size = (masks.shape[-2], masks.shape[-1])
    grid = grid_of(logits, size, align_corners=terms.align_corners, values=VALUES[logits.device.type])
    with torch.autocast(logits.device.type, enabled=False):
        for picture in range(len(logits)):
            for strip in grid.rows:
                pixels = _Pixels(terms, grid.read(logits[picture], strip), masks[picture, strip.places].reshape(-1))
                total += pixels.sum()
                count += pixels.count()
                if gradient is not None:
                    grid.write(gradient[picture], strip, pixels.gradient())
    return total, count


class _Pixels:
    """logits (N, K) and labels (N,) of some pixels, in the terms of the loss."""

    def __init__(self, terms: _Terms, logits: Tensor, labels: Tensor) -> None:
        self.labelled = labels != IGNORE
        self.index = torch.where(self.labelled, labels, 0).long()[:, None]  # (N, 1)
        self.probabilities, self.picked = _softmax(logits, self.index)
        self.weights = None if terms.weights is None else terms.weights.to(logits)
        present = self.labelled.to(logits.dtype)
        self.weighted = present if self.weights is None else present * self.weights[self.index[:, 0]]
        self.own = self.weighted * (1 - terms.label_smoothing)  # what each pixel's own class counts
        self.every = terms.label_smoothing / logits.shape[1]  # and what each class counts, times its weight
        self.smooth: Tensor | None = None
        if self.every > 0:
            self.class_weights = logits.new_ones(logits.shape[1]) if self.weights is None else self.weights
            normaliser = logits.gather(1, self.index)[:, 0] - self.picked
            self.smooth = logits.mv(self.class_weights) - self.class_weights.sum() * normaliser

    def sum(self) -> Tensor:
        """The sum of the losses, () in float64."""
        losses = self.own * self.picked
        if self.smooth is not None:
            losses = losses + self.every * self.smooth
        return -torch.where(self.labelled, losses, 0).sum(dtype=torch.float64)

    def count(self) -> Tensor:
        """What the sum over all pixels is divided by, ()."""
        return self.weighted.sum(dtype=torch.float64)

    def gradient(self) -> Tensor:
        """Of the sum at the logits, (N, K); made in the place of the probabilities."""
        gradient, own = self.probabilities, self.own
        if self.smooth is not None:
            present = self.labelled.to(own.dtype)
            factor = own + present * (self.every * self.class_weights.sum())
            gradient = gradient.mul_(factor[:, None]).addr_(present, self.class_weights, alpha=-self.every)
        elif own.device.type != "cpu" or not bool((own == 1).all()):
            gradient = gradient.mul_(own[:, None])
        return gradient.scatter_add_(1, self.index, -own[:, None])


def _softmax(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """logits (N, K), index (N, 1) -> probabilities (N, K) and the logarithms of those picked by index (N,)."""
    if logits.device.type != "cpu":
        logarithms = torch.log_softmax(logits, dim=1)
        return logarithms.exp(), logarithms.gather(1, index)[:, 0]
    # One exponential instead of two; where the picked probability is too faint for its logarithm, the long way.
    probabilities = torch.softmax(logits, dim=1)
    picked = probabilities.gather(1, index)[:, 0].log_()
    faint = (picked < FAINT).nonzero()[:, 0]
    if len(faint):
        picked[faint] = torch.log_softmax(logits[faint], dim=1).gather(1, index[faint])[:, 0]
    return probabilities, picked

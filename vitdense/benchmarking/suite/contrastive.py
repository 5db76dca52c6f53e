"""Rows of the losses of CLIP and SigLIP by themselves: from embeddings of unit length to all gradients."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.benchmarking.rows import SEED, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.ops.contrastive import clip_loss, siglip_loss

PAIRS, WIDTH = 8192, 512
NOTES = (f"{PAIRS} pairs of {WIDTH} channels; --batch 32768 is what large runs compare, and takes 16 times as long.",)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""images, texts (N, D), scale and bias () -> ()."""


class LossJob(Job):
    """Pairs that look alike a little; the loss, and the gradients of embeddings, scale and bias."""

    def __init__(self, loss: Loss, conditions: Conditions, scale: float, bias: float) -> None:
        pairs, width = (41, 12) if conditions.tiny else (conditions.batch or PAIRS, WIDTH)
        generator = torch.Generator().manual_seed(SEED)
        images, noise = (torch.randn(pairs, width, generator=generator) for _ in range(2))
        given = {
            "images": F.normalize(images, dim=-1),
            "texts": F.normalize(0.4 * images + noise, dim=-1),
            "scale": torch.tensor(scale),
            "bias": torch.tensor(bias),
        }
        self.given = {name: each.to(conditions.device).requires_grad_() for name, each in given.items()}
        self.loss = torch.compile(loss) if conditions.compiled else loss

    def step(self) -> None:
        """Forward and backward."""
        self._run()

    def outcome(self) -> Outcome:
        """The loss and the gradients."""
        found = {"loss": self._run().detach()}
        grown = {f"gradient of {name}": each.grad for name, each in self.given.items()}
        return found | {name: each.clone() for name, each in grown.items() if each is not None}

    def _run(self) -> Tensor:
        for each in self.given.values():
            each.grad = None
        loss = self.loss(*self.given.values())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss


def _our_clip(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return clip_loss(images, texts, scale)


def _open_clip_loss(kind: Literal["ClipLoss", "SigLipLoss"]) -> Loss:
    def loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        import open_clip.loss

        made: Any = getattr(open_clip.loss, kind)()
        found: Tensor = made(images, texts, scale, **({} if kind == "ClipLoss" else {"logit_bias": bias}))
        return found

    return loss


def _row(name: str, summary: str, ours: Loss, theirs: Loss, *, scale: float, bias: float) -> Row:
    def job(loss: Loss) -> Callable[[Conditions], Job]:
        return lambda conditions: LossJob(loss, conditions, scale, bias)

    our_job, their_job = job(ours), job(theirs)
    peer = Peer(
        "open_clip", "open_clip", their_job, lambda conditions: Pair(our_job(conditions), their_job(conditions))
    )
    goals: dict[Any, Goal] = {"cpu": Goal(0.60, 0.05), "cuda": Goal(0.70 if name == "clip_loss" else 0.60, 0.05)}
    return Row(name, summary, our_job, (peer,), goals, NOTES)


ROWS = (
    _row(
        "clip_loss",
        f"CLIP's loss of {PAIRS} pairs, forward and backward",
        _our_clip,
        _open_clip_loss("ClipLoss"),
        scale=1 / 0.07,
        bias=0.0,
    ),
    _row(
        "siglip_loss",
        f"SigLIP's loss of {PAIRS} pairs, forward and backward",
        siglip_loss,
        _open_clip_loss("SigLipLoss"),
        scale=10.0,
        bias=-10.0,
    ),
)

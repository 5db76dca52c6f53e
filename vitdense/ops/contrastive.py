"""The losses of CLIP (https://arxiv.org/abs/2103.00020) and SigLIP (https://arxiv.org/abs/2303.15343), whose N x N
logits are never held: strips of rows, gradients made on the way, over the pairs of all processes."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.errors import UserError
from vitdense.ops.contrastive_strips import (
    LINEAR,
    Side,
    Sums,
    Wanted,
    softmax_gradients,
    sum_exponentials,
    walk_sigmoids,
)
from vitdense.ops.eager import runs_eagerly
from vitdense.ops.gathering import count_rows, first_row, gather_around, gather_rows, greatest_of_all, sum_of_all

Gradients = tuple[Tensor | None, ...]
"""Of images, texts, scale and bias."""


def clip_loss(images: Tensor, texts: Tensor, scale: Tensor, *, same: Tensor | None = None) -> Tensor:
    """images, texts: (n, D), pairs in the same row; scale: () -> (): cross entropies over scale * images @ texts.T by
    row and by column, the mean of both over all N pairs.

    N are the pairs of all processes where torch.distributed runs, as many in each as it likes. All get the same loss;
    gradients are those of the process's own rows and of its share in the scale, times the number of processes: their
    mean, which DDP takes, is the gradient of the loss. Half precision is computed in float32.

    same: (n,) int64, equal for texts that say the same, which then are no negatives of each other's pictures. Without
    it they are, as published, and pull apart what is the same: the picture of a text that stands k times in the batch
    has a cross entropy of log(k) at the least.
    """
    return _loss(_Terms("clip", same), images, texts, scale, None)


def siglip_loss(
    images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None, *, same: Tensor | None = None
) -> Tensor:
    """images, texts: (n, D), pairs in the same row; scale, bias: () -> (): -log sigmoid(+-(scale * images @ texts.T +
    bias)), + for pairs, summed over N x N and divided by N; processes and `same` as in `clip_loss`.
    """
    return _loss(_Terms("siglip", same), images, texts, scale, bias)


@dataclass(frozen=True)
class _Terms:
    kind: Literal["clip", "siglip"]
    same: Tensor | None


def _loss(terms: _Terms, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    if images.ndim != 2 or images.shape != texts.shape:
        raise UserError(
            f"expected images and texts (n, D), one text for each picture; given {tuple(images.shape)} and"
            f" {tuple(texts.shape)}"
        )
    given = [each for each in (images, texts, scale, bias) if each is not None]
    if not runs_eagerly(*given):
        return _plain(terms, images, texts, scale, bias)
    if torch.is_grad_enabled() and any(each.requires_grad for each in given):
        loss: Tensor = _Contrastive.apply(terms, images, texts, scale, bias)
        return loss
    return _walk(terms, (images, texts, scale, bias), (False,) * 4)[0]


class _Contrastive(torch.autograd.Function):
    """`_walk` with a way back, which is no more than a product."""

    @staticmethod
    def forward(ctx: Any, terms: _Terms, *given: Tensor | None) -> Tensor:
        ctx.terms = terms
        ctx.save_for_backward(*given)
        loss, ctx.gradients = _walk(terms, given, ctx.needs_input_grad[1:])
        return loss

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        given, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_differentiable(ctx.terms, given, needs, above)
        # Given away at the first time, so that it can be scaled in place; made again at the next, if there is one.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = _walk(ctx.terms, given, needs)[1]
        pairs = zip(given, gradients, strict=True)
        return None, *(None if each is None else each.mul_(above).to(tensor.dtype) for tensor, each in pairs)


def _differentiable(terms: _Terms, given: Any, needs: tuple[bool, ...], above: Tensor) -> list[Tensor | None]:
    """Gradients that can be differentiated again."""
    asked = [each for each, needed in zip(given, needs, strict=True) if needed]
    found = iter(torch.autograd.grad(_plain(terms, *given), asked, above, create_graph=True))
    return [next(found) if needed else None for needed in needs]


def _plain(terms: _Terms, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The loss in torch's own operations, over logits (N, N)."""
    precise = _precise(images, texts)
    counts = count_rows(images)
    pictures, captions = (gather_around(rows.to(precise), counts) for rows in (images, texts))
    logits = scale.to(precise) * pictures @ captions.T  # (N, N)
    own = torch.eye(len(logits), device=logits.device, dtype=torch.bool)
    if terms.same is not None:
        same = gather_rows(terms.same, counts)
        logits = logits.masked_fill((same[:, None] == same) & ~own, -torch.inf)
    if terms.kind == "clip":
        index = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index)) / 2
    logits = logits if bias is None else logits + bias.to(precise)
    return F.softplus(torch.where(own, -logits, logits), threshold=LINEAR).sum() / len(logits)


def _precise(images: Tensor, texts: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)


@torch.no_grad()
def _walk(terms: _Terms, given: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> tuple[Tensor, Gradients]:
    """images, texts, scale, bias -> the loss () and the gradients that are needed."""
    images, texts, scale, bias = given
    assert images is not None
    assert texts is not None
    assert scale is not None
    precise = _precise(images, texts)
    with torch.autocast(images.device.type, enabled=False):
        meeting = _Meeting(terms, images.to(precise), texts.to(precise), scale.to(precise))
        # The scale's gradient is read off the rows' own, of either side.
        room = meeting.room(pictures=needs[0] or (needs[2] and not needs[1]), captions=needs[1])
        if terms.kind == "clip":
            total, slope, share = *meeting.softmaxes(room), 0.5
        else:
            total, slope, share = *meeting.sigmoids(torch.zeros_like(scale) if bias is None else bias, room), 1.0
        pairs = sum(meeting.counts)
        share *= len(meeting.counts) / pairs
        by_scale = meeting.by_scale(room).mul_(share) if needs[2] else None
        gradients = [None if each is None else each.mul_(meeting.scale * share) for each in room]
    found = (gradients[0] if needs[0] else None, gradients[1], by_scale, slope * share if needs[3] else None)
    return (sum_of_all(total) / pairs).to(precise), found


Room = tuple[Tensor | None, Tensor | None]
"""Where the gradients of this process's images and texts go."""


class _Meeting:
    """This process's images and texts (n, D) beside those of all (N, D).

    Alone, one product of both serves both gradients. With others, each process compares its images with all texts and
    its texts with all images: one product more, but nobody has gradients (N, D) for others to send.
    """

    def __init__(self, terms: _Terms, images: Tensor, texts: Tensor, scale: Tensor) -> None:
        self.counts, self.scale = count_rows(images), scale
        self.first = first_row(self.counts)
        self.alone, self.own = len(self.counts) == 1, slice(self.first, self.first + len(images))
        same = None if terms.same is None else gather_rows(terms.same, self.counts)
        self.pictures = Side(images, gather_rows(texts, self.counts), self.first, scale, same)
        self.captions = Side(texts, gather_rows(images, self.counts), self.first, scale, same)

    def room(self, *, pictures: bool, captions: bool) -> Room:
        """For the gradients that are asked for."""
        texts = self.captions.rows
        room = torch.zeros_like(texts) if self.alone else torch.empty_like(texts)
        return torch.empty_like(self.pictures.rows) if pictures else None, room if captions else None

    def softmaxes(self, room: Room) -> tuple[Tensor, Tensor]:
        """The means of both cross entropies of these pairs, summed, and 0 for the bias, which moves neither."""
        by_image, by_text, pairs = sum_exponentials(self.pictures)
        by_text = _over_processes(by_text)
        total = ((by_image.logarithm() + by_text.part(self.own).logarithm()) / 2 - pairs.double()).sum()
        if self.alone:
            if room != (None, None):
                softmax_gradients(self.pictures, by_image, by_text, Wanted(*room))
            return total, torch.zeros_like(total)
        if room[0] is not None:
            softmax_gradients(self.pictures, by_image, by_text, Wanted(room[0], None))
        if room[1] is not None:
            by_images = Sums(*(gather_rows(each, self.counts) for each in (by_image.greatest, by_image.total)))
            softmax_gradients(self.captions, by_text.part(self.own), by_images, Wanted(room[1], None))
        return total, torch.zeros_like(total)

    def sigmoids(self, bias: Tensor, room: Room) -> tuple[Tensor, Tensor]:
        """SigLIP's losses of these images and all texts, summed, and the sum's gradient by the bias."""
        found = walk_sigmoids(self.pictures, bias, Wanted(room[0], room[1] if self.alone else None))
        if room[1] is not None and not self.alone:
            walk_sigmoids(self.captions, bias, Wanted(room[1], None))
        return found

    def by_scale(self, room: Room) -> Tensor:
        """The gradient by the scale, (): logits are scale * products, whose gradients went into the room."""
        images, texts = room
        if images is not None:
            return _inner(self.pictures.rows, images)
        assert texts is not None
        return _inner(self.captions.rows, texts)


def _inner(rows: Tensor, others: Tensor) -> Tensor:
    """(N, D) twice -> the sum of all products."""
    found: Tensor = torch.linalg.vecdot(rows, others).sum()
    return found


def _over_processes(by_text: Sums) -> Sums:
    """Sums over the images of this process -> over those of all."""
    greatest = greatest_of_all(by_text.greatest)
    return Sums(greatest, sum_of_all(by_text.total * (by_text.greatest - greatest).exp()))

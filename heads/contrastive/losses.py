"""The losses of CLIP (https://arxiv.org/abs/2103.00020) and SigLIP (https://arxiv.org/abs/2303.15343), and what a
teacher's logits add to them (CLIP-KD, https://arxiv.org/abs/2307.12732)."""

import torch
from torch import Tensor

from vitdense.contracts import Outputs
from vitdense.ops import contrastive
from vitdense.ops.gathering import count_rows, gather_around


def clip_loss(
    images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None, *, same: Tensor | None = None
) -> Tensor:
    """images, texts: (N, D) of unit length, pairs in the same row -> the mean over both ways of choosing.

    A bias moves no softmax. `same`: (N,), equal for texts that say the same, which are then no negatives.
    """
    return contrastive.clip_loss(images, texts, scale, same=same)


def siglip_loss(
    images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None, *, same: Tensor | None = None
) -> Tensor:
    """images, texts: (N, D) of unit length, pairs in the same row -> yes or no for each of N x N, over N."""
    return contrastive.siglip_loss(images, texts, scale, bias, same=same)


def distillation_loss(outputs: Outputs, teacher: Outputs) -> Tensor:
    """The cross entropy of a teacher's softmax and one's own, over texts and over images, their mean.

    Of both: `image_embeddings`, `text_embeddings` (N, D) of unit length and `logit_scale` (). Holds logits (N, N), of
    all processes.
    """
    counts = count_rows(outputs["image_embeddings"])
    own, wanted = _logits(outputs, counts), _logits(teacher, counts).detach()
    return sum(-(wanted.softmax(dim) * own.log_softmax(dim)).sum(dim).mean() for dim in (0, 1)) / 2  # type: ignore[return-value]


def _logits(outputs: Outputs, counts: list[int]) -> Tensor:
    """(N, N): rows of images."""
    scale = outputs["logit_scale"]
    precise = torch.promote_types(scale.dtype, torch.float32)
    images, texts = (gather_around(outputs[f"{kind}_embeddings"].to(precise), counts) for kind in ("image", "text"))
    return scale * images @ texts.T


def number_texts(tokens: Tensor) -> Tensor:
    """tokens: (N, L) int64, behind the end 0 or nothing -> (N,) int64, equal for equal texts: sums of token times a
    factor for its place, modulo 2**64; two texts that differ meet by a chance of about 1 to 2**63."""
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    factors = (places * 0x9E3779B97F4A7C1 ^ 0x2545F4914F6CDD1D) * 0x5851F42D4C957F2D | 1
    return (tokens * factors).sum(dim=1)

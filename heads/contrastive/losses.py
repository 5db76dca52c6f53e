"""The losses of CLIP (https://arxiv.org/abs/2103.00020) and SigLIP (https://arxiv.org/abs/2303.15343)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def clip_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """images, texts: (N, D) of unit length, pairs in the same row -> the mean over both ways of choosing."""
    logits = scale * images @ texts.T  # (N, N)
    own = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def siglip_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """images, texts: (N, D) of unit length, pairs in the same row -> yes or no for each of N x N, over N."""
    logits = scale * images @ texts.T + (0 if bias is None else bias)  # (N, N)
    signs = 2 * torch.eye(len(images), device=images.device, dtype=logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(images)

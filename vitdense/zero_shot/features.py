"""Frozen features of pictures, from any backbone or contrastive model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.model import Model

Encode = Callable[[Tensor], Tensor]
"""Pictures (B, 3, H, W) -> (B, C)."""


@dataclass(frozen=True)
class Features:
    """vectors (N, C) and labels (N,), on the CPU."""

    vectors: Tensor
    labels: Tensor


def encoder_of(model: Model, *, projected: bool = False) -> Encode:
    """Pictures as uint8 or floats in [0, 1] -> the backbone's vector, or, `projected`, that in the space of texts.

    CLIP's authors probe what comes before the projection (https://arxiv.org/abs/2103.00020, appendix A).
    """
    if projected:
        return lambda images: model.encode_image(images, normalize=False)
    return lambda images: model.backbone.embed(model.normalise(images))


def encoder_of_backbone(backbone: Backbone) -> Encode:
    """Pictures as uint8 or floats in [0, 1] -> the vector of a backbone without a head."""
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (backbone.mean, backbone.std))

    def encode(images: Tensor) -> Tensor:
        pixels = images if images.is_floating_point() else images.float() / 255
        return backbone.embed((pixels - mean.to(pixels)) / std.to(pixels))

    return encode


@torch.no_grad()
def extract(encode: Encode, batches: Iterable[tuple[Tensor, Tensor]]) -> Features:
    """Batches of pictures (B, 3, H, W) and labels (B,) -> features of all."""
    vectors, labels = [], []
    for images, own in batches:
        vectors.append(encode(images).float().cpu())
        labels.append(own.cpu())
    if not vectors:
        raise UserError("no pictures to take features of")
    return Features(torch.cat(vectors), torch.cat(labels))

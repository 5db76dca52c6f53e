"""Vectors of pictures from frozen networks: a backbone's own, or those that lie in the space of texts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.model import Model

Encode = Callable[[Tensor], Tensor]
"""Pictures (B, 3, H, W), uint8 or floats in [0, 1] -> (B, C)."""


@dataclass(frozen=True)
class Features:
    """vectors (N, C) and labels (N,), on the CPU."""

    vectors: Tensor
    labels: Tensor


def encoder_of(model: Model, *, projected: bool = False) -> Encode:
    """Pictures -> the backbone's vector, or, `projected`, what texts are compared with, of unit length.

    CLIP's authors probe what comes before the projection (https://arxiv.org/abs/2103.00020, appendix A).
    """
    device = model.get_buffer("mean").device
    if projected:
        return lambda images: model.encode_image(images.to(device))
    return lambda images: model.backbone.embed(model.normalise(images.to(device)))


def encoder_of_backbone(backbone: Backbone) -> Encode:
    """Pictures -> the vector of a backbone without a head."""
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (backbone.mean, backbone.std))
    parameter = next(backbone.parameters())

    def encode(images: Tensor) -> Tensor:
        pixels = images.to(parameter) if images.is_floating_point() else images.to(parameter) / 255
        return backbone.embed((pixels - mean.to(pixels)) / std.to(pixels))

    return encode


@torch.no_grad()
def extract(encode: Encode, batches: Iterable[Tensor]) -> Tensor:
    """Batches of pictures (B, 3, H, W) -> vectors (N, C) of all, in fp32 or better, on the CPU."""
    vectors = []
    for images in batches:
        found = encode(images)
        vectors.append(found.to("cpu", torch.promote_types(found.dtype, torch.float32)))
    if not vectors:
        raise UserError("no pictures to take features of")
    return torch.cat(vectors)

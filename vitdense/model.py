"""Model: normalise, backbone, head. Plain torch: it runs in a bare script, under torch.compile, autocast and DDP."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.contracts import Backbone, Batch, ContrastiveHead, Head, Outputs, Predictions
from vitdense.errors import UserError
from vitdense.inference import InferenceConfig, infer

if TYPE_CHECKING:
    from PIL import Image


class Model(nn.Module):
    """A backbone under a head; `classes` and `palette` name what the head's indices mean, and `category_ids` are the
    numbers that the data set has for them. `preprocess` is what the publisher of a contrastive model does to a picture
    beforehand, where there is one."""

    preprocess: "Callable[[Image.Image], Image.Image] | None" = None

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        classes: Sequence[str] = (),
        palette: Sequence[tuple[int, int, int]] = (),
        category_ids: Sequence[int] = (),
        inference: InferenceConfig | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        # What serves only what the head doesn't read gets no gradient, which DDP would take for an error.
        for name in backbone.unused_in_maps() if head.reads == "maps" else backbone.unused_in_embed():
            backbone.get_parameter(name).requires_grad_(False)
        if head.frozen_backbone:
            backbone.requires_grad_(False)
        self.classes = tuple(classes)
        self.palette = tuple(palette)
        self.category_ids = tuple(category_ids)
        self.inference = inference or InferenceConfig()
        self.register_buffer("mean", torch.tensor(backbone.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(-1, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), uint8 or floats in [0, 1] -> floats with the weights' own mean and deviation."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        images = images.to(mean.dtype) if images.is_floating_point() else images.to(mean.dtype) / 255
        return (images - mean) / std

    def forward(self, batch: Batch) -> Outputs:
        """batch["images"]: (B, C, H, W), uint8 or floats in [0, 1] -> the head's outputs."""
        images = self.normalise(batch["images"])
        if "extents" in batch:
            images = blank_padding(images, batch["extents"])
        return self.head(self.features(images), batch)  # type: ignore[no-any-return]

    def features(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> what the head reads of the backbone."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.head.frozen_backbone):
            if self.head.reads == "maps":
                maps: list[Tensor] = self.backbone(images)
                return maps
            if self.head.reads == "vector":
                return [self.backbone.embed(images)]
            patches, prefix, _ = self.backbone.tokens(images)
            return [torch.cat([prefix, patches], dim=1)]

    def train(self, mode: bool = True) -> Self:
        """Training mode for what learns."""
        super().train(mode)
        if self.head.frozen_backbone:
            self.backbone.eval()
        return self

    def encode_image(self, images: Tensor, *, normalize: bool = True) -> Tensor:
        """images: (B, C, H, W), uint8 or floats in [0, 1] -> (B, D), of unit length if `normalize`."""
        found = self._contrastive().encode_image(self.features(self.normalise(images)))
        return F.normalize(found, dim=-1) if normalize else found

    def encode_text(self, texts: Sequence[str] | Tensor, *, normalize: bool = True) -> Tensor:
        """N texts, or tokens (N, L) of this model's tokenizer -> (N, D), of unit length if `normalize`."""
        head = self._contrastive()
        tokens = texts if isinstance(texts, Tensor) else head.tokenizer(texts).to(self.get_buffer("mean").device)
        found = head.encode_text(tokens)
        return F.normalize(found, dim=-1) if normalize else found

    def _contrastive(self) -> ContrastiveHead:
        if not isinstance(self.head, ContrastiveHead):
            raise UserError(f"{type(self.head).__name__} has no space that pictures and texts share; head clip has one")
        return self.head

    @torch.no_grad()
    def predict(self, pictures: Sequence[object], inference: InferenceConfig | None = None) -> Predictions:
        """PIL images, (H, W, C) uint8 arrays or paths, of any sizes -> a prediction each, at the picture's own size."""
        was_training = self.training
        self.eval()
        try:
            results: Predictions = []
            for index, picture in enumerate(pictures):
                image = _read(picture).to(self.get_buffer("mean").device)
                if image.shape[0] != len(self.backbone.mean):
                    expected = len(self.backbone.mean)
                    raise UserError(f"picture {index} has {image.shape[0]} channels, the model takes {expected}")
                batch: Batch = {"images": image[None], "sizes": [(image.shape[1], image.shape[2])]}
                found = infer(self, batch, inference or self.inference)
                results += [each.named(self.category_ids) for each in found] if self.head.detects else found
            return results
        finally:
            self.train(was_training)


def blank_padding(images: Tensor, extents: Tensor) -> Tensor:
    """images: (B, C, H, W), normalised, with pictures of extents (B, 2) at the top left -> 0 beyond them."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < extents[:, :1]  # (B, H)
    columns = torch.arange(width, device=images.device) < extents[:, 1:]  # (B, W)
    return images * (rows[:, None, :, None] & columns[:, None, None])


def _read(picture: object) -> Tensor:
    """A path, a PIL image or an array -> (C, H, W) uint8."""
    import numpy as np
    from PIL import Image, ImageOps

    from vitdense.data.images import read_image

    if isinstance(picture, str | Path):
        array = read_image(Path(picture))
    elif isinstance(picture, Image.Image):
        array = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    elif isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.dtype == np.uint8:
        array = picture
    else:
        raise UserError(f"expected a path, a PIL image or a (H, W, C) uint8 array, given {type(picture).__name__}")
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)  # (C, H, W)

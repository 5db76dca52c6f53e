"""Model: normalise, backbone, head. Plain torch: it runs in a bare script, under torch.compile, autocast and DDP."""

import copy
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.contracts import Backbone, Batch, ContrastiveHead, Detections, Head, Outputs, Predictions, Segments
from vitdense.errors import UserError
from vitdense.inference import InferenceConfig, infer
from vitdense.layers.locking import rest_where_frozen
from vitdense.preprocessing import Preprocess


class Model(nn.Module):
    """A backbone under a head; `classes` and `palette` name what the head's indices mean, and `category_ids` are the
    numbers that the data set has for them. `preprocess` is what is done to a picture before a contrastive model sees
    it, by its publisher or by the recipe that it was trained with, where that is known."""

    preprocess: Preprocess | None = None

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
        reads = {each.reads for each in head.tasks.values()} or {head.reads}
        if backbone.adapter_config is not None and "maps" not in reads:
            adapter = backbone.adapter_config.preset
            raise UserError(f"{type(head).__name__} reads nothing of adapter {adapter}: leave the adapter out")
        # What serves only what the head doesn't read gets no gradient, which DDP would take for an error.
        for name in unused(backbone, reads):
            backbone.get_parameter(name).requires_grad_(False)
        if head.frozen_backbone:
            _lock(backbone, head.unlocked_layers)
        self.classes = tuple(classes)
        self.palette = tuple(palette)
        self.category_ids = tuple(category_ids)
        self.inference = inference or InferenceConfig()
        # One number for each channel, before as many axes as an input of this backbone has behind its channels.
        axes = 2 if all(level.time_stride is None for level in backbone.levels) else 3
        shape = (-1, *[1] * axes)
        self.register_buffer("mean", torch.tensor(backbone.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(shape), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), or clips (B, C, T, H, W); uint8 or floats in [0, 1] -> floats, with the weights' own
        mean and deviation."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        images = images.to(mean.dtype) if images.is_floating_point() else images.to(mean.dtype) / 255
        return (images - mean) / std

    def forward(self, batch: Batch) -> Outputs:
        """batch["images"]: (B, C, H, W), uint8 or floats in [0, 1] -> the head's outputs."""
        images = self.normalise(batch["images"])
        if "extents" in batch:
            images = blank_padding(images, batch["extents"])
        return self.head(self.features(images, batch), batch)  # type: ignore[no-any-return]

    def features(self, images: Tensor, batch: Batch | None = None) -> list[Tensor]:
        """images: (B, C, H, W), normalised, of a batch -> what the head reads of the backbone."""
        learns = self.head.unlocked_layers > 0 or not self.head.frozen_backbone
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            return self.head.look(self.backbone, images, batch)

    def alone(self, task: str) -> Self:
        """This very model, its parameters included, with one of the heads that its head consists of."""
        seen = copy.copy(self)
        seen._modules = {**self._modules, "head": self.head.tasks[task]}
        return seen

    def train(self, mode: bool = True) -> Self:
        """Training mode for what learns."""
        super().train(mode)
        if self.head.frozen_backbone:
            rest_where_frozen(self.backbone)
        return self

    def encode_image(self, images: Tensor, *, normalize: bool = True) -> Tensor:
        """images: (B, C, H, W), uint8 or floats in [0, 1] -> (B, D), of unit length if `normalize`."""
        head = self._contrastive()
        found = head.encode_image(head.look(self.backbone, self.normalise(images)))
        return F.normalize(found, dim=-1) if normalize else found

    def encode_text(self, texts: Sequence[str] | Tensor, *, normalize: bool = True) -> Tensor:
        """N texts, or tokens (N, L) of this model's tokenizer -> (N, D), of unit length if `normalize`."""
        head = self._contrastive()
        tokens = texts if isinstance(texts, Tensor) else head.tokenizer(texts).to(self.get_buffer("mean").device)
        found = head.encode_text(tokens)
        return F.normalize(found, dim=-1) if normalize else found

    @property
    def takes_clips(self) -> bool:
        """Whether an input has a time axis, or is a volume."""
        return any(level.time_stride is not None for level in self.backbone.levels)

    def _check(self, image: Tensor, index: int) -> None:
        """Whether an input is of the kind, and has the channels, that the model takes."""
        expected = 4 if self.takes_clips else 3
        if image.ndim != expected:
            takes = "clips (T, H, W, C)" if self.takes_clips else "pictures (H, W, C)"
            kind = "a picture" if image.ndim == 3 else "a clip"
            raise UserError(f"input {index} is {kind}, and the model takes {takes}")
        if 0 in image.shape:
            raise UserError(f"input {index} is empty: (C, {'T, ' * (expected - 3)}H, W) = {tuple(image.shape)}")
        if image.shape[0] != len(self.backbone.mean):
            kind = "clip" if self.takes_clips else "picture"
            raise UserError(f"{kind} {index} has {image.shape[0]} channels, the model takes {len(self.backbone.mean)}")

    def _named(self, found: Any) -> Any:
        """Detections with the data set's own numbers; what else there is as it is."""
        if isinstance(found, dict):
            return {task: self._named(each) for task, each in found.items()}
        return found.named(self.category_ids) if isinstance(found, Detections | Segments) else found

    def _contrastive(self) -> ContrastiveHead:
        for head in (self.head, *self.head.tasks.values()):
            if isinstance(head, ContrastiveHead):
                return head
        raise UserError(f"{type(self.head).__name__} has no space that pictures and texts share; head clip has one")

    @torch.no_grad()
    def predict(self, pictures: Sequence[object], inference: InferenceConfig | None = None) -> Predictions:
        """PIL images, (H, W, C) uint8 arrays or paths, of any sizes -> a prediction each, at the picture's own size.

        A model of clips or volumes takes (T, H, W, C) uint8 arrays, or tensors (C, T, H, W) of uint8 or of floats in
        [0, 1].
        """
        was_training = self.training
        self.eval()
        try:
            results: Predictions = []
            for index, picture in enumerate(pictures):
                image = _read(picture).to(self.get_buffer("mean").device)
                self._check(image, index)
                batch: Batch = {"images": image[None], "sizes": [(image.shape[-2], image.shape[-1])]}
                results += infer(self, batch, inference or self.inference)
            return [self._named(each) for each in results]
        finally:
            self.train(was_training)


def unused(backbone: Backbone, reads: Set[str]) -> set[str]:
    """Names of parameters that none of what is read ("maps", "vector", "tokens" or "blocks") needs."""
    idle = {"maps": backbone.unused_in_maps, "blocks": backbone.unused_in_blocks}
    return set.intersection(*(idle.get(kind, backbone.unused_in_embed)() for kind in reads))


def _lock(backbone: Backbone, unlocked_layers: int) -> None:
    """Nothing of a backbone learns but its last layers, and what comes after them."""
    if unlocked_layers > backbone.num_layers:
        raise UserError(f"unlocked_layers is {unlocked_layers}, and the backbone has {backbone.num_layers} layers")
    for name, parameter in backbone.named_parameters():
        if backbone.layer_of(name) <= backbone.num_layers - unlocked_layers:
            parameter.requires_grad_(False)


def blank_padding(images: Tensor, extents: Tensor) -> Tensor:
    """images: (B, C, H, W), normalised, with pictures of extents (B, 2) at the top left -> 0 beyond them."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < extents[:, :1]  # (B, H)
    columns = torch.arange(width, device=images.device) < extents[:, 1:]  # (B, W)
    return images * (rows[:, None, :, None] & columns[:, None, None])


def _read(picture: object) -> Tensor:
    """A path, a PIL image or an array -> (C, H, W) or (C, T, H, W), uint8 or floats in [0, 1]."""
    import numpy as np
    from PIL import Image, ImageOps

    from vitdense.data.images import read_image

    if isinstance(picture, Tensor) and picture.ndim == 4:
        return picture if picture.is_floating_point() else picture.to(torch.uint8)
    if isinstance(picture, str | Path):
        array = read_image(Path(picture))
    elif isinstance(picture, Image.Image):
        array = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    elif isinstance(picture, np.ndarray) and picture.ndim in (3, 4) and picture.dtype == np.uint8:
        array = picture
    else:
        raise UserError(
            "expected a path, a PIL image, a (H, W, C) or (T, H, W, C) uint8 array, or a (C, T, H, W) tensor, "
            f"given {type(picture).__name__}"
        )
    return torch.from_numpy(np.array(array)).movedim(-1, 0)  # (C, H, W) or (C, T, H, W)

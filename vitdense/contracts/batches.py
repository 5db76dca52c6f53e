"""What passes between data, models and metrics: samples, batches, outputs and predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from vitdense.errors import UserError

IGNORE = -1
"""The class index of pixels without a label, in every mask and every loss, whatever the files use."""
Split = Literal["train", "val"]
Outputs = dict[str, Tensor]


class Target(TypedDict, total=False):
    """What is to be found in one picture, N things, at the size of the picture that stands beside it.

    boxes (N, 4) xyxy in pixels, fp32 to learn from and fp64 to score by; labels (N,) int64 class indices; masks
    (N, H, W) bool where the data has them and they were asked for. Of validation alone: crowd (N,) bool, groups that
    any number of detections may lie in, and areas (N,) fp64 in pixels, by which sizes are told.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    crowd: Tensor
    areas: Tensor


@dataclass(frozen=True)
class Detections:
    """Things found in one picture, best first: boxes (N, 4) xyxy in its pixels, scores (N,), labels (N,) class indices.

    masks (N, H, W) bool where the head gives them; category_ids (N,) are the labels under the data set's own numbers.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
    category_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Tensor | slice) -> "Detections":
        """Those at some indices, or of a bool mask (N,)."""
        return self._each(lambda tensor: tensor[chosen])

    def cpu(self) -> "Detections":
        """The same on the CPU."""
        return self._each(Tensor.cpu)

    def named(self, category_ids: Sequence[int]) -> "Detections":
        """The same with the number of each class in the data set, none given: the class indices."""
        if not category_ids:
            return replace(self, category_ids=self.labels)
        return replace(self, category_ids=torch.tensor(category_ids, device=self.labels.device)[self.labels])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Detections":
        present = {field.name: getattr(self, field.name) for field in fields(self)}
        return Detections(**{name: change(tensor) for name, tensor in present.items() if tensor is not None})


@dataclass(frozen=True)
class Segments:
    """What one picture consists of, things and stuff: `ids` (H, W) int32 is 0 where nothing is said, and i + 1 where
    segment i lies, of n: labels (n,) class indices, scores (n,), category_ids (n,) the data set's numbers of labels.
    """

    ids: Tensor
    labels: Tensor
    scores: Tensor
    category_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def cpu(self) -> "Segments":
        """The same on the CPU."""
        numbers = None if self.category_ids is None else self.category_ids.cpu()
        return Segments(self.ids.cpu(), self.labels.cpu(), self.scores.cpu(), numbers)

    def named(self, category_ids: Sequence[int]) -> "Segments":
        """The same with the number of each class in the data set, none given: the class indices."""
        if not category_ids:
            return replace(self, category_ids=self.labels)
        return replace(self, category_ids=torch.tensor(category_ids, device=self.labels.device)[self.labels])

    def classes(self) -> Tensor:
        """(H, W) int64: the class index of each pixel's segment, IGNORE where there is none."""
        table = torch.cat([self.labels.new_full((1,), IGNORE), self.labels])
        return table[self.ids.long()]


@dataclass(frozen=True)
class Embeddings:
    """A picture and what is said of it in one space, of unit length: image (D,), texts (n, D), one for each caption."""

    image: Tensor
    texts: Tensor

    def cpu(self) -> "Embeddings":
        """The same on the CPU."""
        return Embeddings(self.image.cpu(), self.texts.cpu())


class Sample(TypedDict, total=False):
    """image (C, H, W) uint8; mask (H, W) int16, IGNORE where unlabelled; depth (H, W) fp32 metres, 0 where unknown;
    target: the things in the picture; label: its class index; captions: one to learn from, all of them to score by.

    Of a clip or a volume: image (C, T, H, W), uint8 or floats in [0, 1], and mask (T, H, W); where a clip is looked at
    several times, image (V, C, T, H, W) are its views, for one label. Of two pictures that are compared: image
    (C, 2, H, W), before and after, and one mask (H, W)."""

    id: str
    image: Tensor
    mask: Tensor
    depth: Tensor
    target: Target
    label: int
    captions: list[str]
    skipped: list[str]


class Batch(TypedDict, total=False):
    """images (B, C, H, W), uint8 or floats in [0, 1]; masks (B, H, W); depth (B, H, W) in metres, 0 where unknown;
    targets: the things in each picture; labels: (B,) int64; captions: those of each picture, and tokens (N, L) int64 of
    all N of them, picture by picture, as the head's tokenizer makes them; extents: (B, 2) int64, (h, w) of each picture
    at the top left of images that are padded, absent where none is; teacher: what the model learnt from makes of
    them, and its `weight` (); progress: () the share of training that is over; sizes: (H, W) of predictions; lean: only
    the head itself reads its outputs, at the pictures' size: any will do.

    Of clips and volumes: images (B, C, T, H, W), masks (B, T, H, W), and predictions of T frames at `sizes`; views: how
    many of images, one after the other, show the same clip, absent where each is one. Of pairs to compare: images
    (B, C, 2, H, W), masks (B, H, W)."""

    ids: list[str]
    images: Tensor
    extents: Tensor
    lean: bool
    masks: Tensor
    depth: Tensor
    targets: list[Target]
    labels: Tensor
    captions: list[list[str]]
    tokens: Tensor
    teacher: Outputs
    progress: Tensor
    sizes: list[tuple[int, int]]
    views: int
    skipped: list[str]


Predictions = list[Any]
"""One entry for each picture, clip or volume of the batch: a (H, W) or (T, H, W) tensor of class indices for
segmentation, of metres for depth, logits (K,) for one class of the whole, Detections for heads that find things,
Segments for those that find stuff too, Embeddings for those that compare pictures with texts."""


def require(batch: Batch, key: str, said: str) -> None:
    """UserError where a batch lacks what a head learns from; `said` begins the message."""
    if key not in batch:
        raise UserError(f"{said}, but the batch has only {', '.join(batch)}: take other data, or another head")

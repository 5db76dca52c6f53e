"""From the masks of queries to results at a picture's size: a map of classes, instances, or segments of things and
stuff, as Mask2Former's authors make them (Cheng et al. 2022, https://arxiv.org/abs/2112.01527)."""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from vitdense.contracts import Batch, Detections, Segments
from vitdense.ops.resizing import full_precision, resize

_PIXELS_AT_ONCE = 2**24
"""So many logits at a picture's size are looked at together."""


def resized_parts(masks: Tensor, size: tuple[int, int], batch: Batch, picture: int) -> Iterator[Tensor]:
    """masks: (n, h, w), logits of one picture of the batch -> (some, *size), a few at a time.

    They are resized to the batch's images, the padding is cut off, and what is left is resized to `size`.
    """
    maps, extent = full_precision(masks), None
    canvas = (batch["images"].shape[-2], batch["images"].shape[-1])
    if "extents" in batch:
        height, width = batch["extents"][picture].tolist()
        extent = (height, width)
    pixels = max(canvas[0] * canvas[1], size[0] * size[1])
    for some in torch.split(maps, max(_PIXELS_AT_ONCE // pixels, 1)):
        part = resize(some[None], canvas)
        if extent is not None:
            part = part[..., : extent[0], : extent[1]]
        yield resize(part, size)[0]


def class_scores(logits: Tensor, masks: Tensor) -> Tensor:
    """logits: (..., Q, K + 1), masks: (..., Q, h, w) -> (..., K, h, w): each class's chances, weighed by masks."""
    chances = full_precision(logits).softmax(-1)[..., :-1]
    return torch.einsum("...qk,...qhw->...khw", chances, full_precision(masks).sigmoid())


def class_map(logits: Tensor, masks: Tensor, size: tuple[int, int], batch: Batch, picture: int) -> Tensor:
    """logits: (Q, K + 1), masks: (Q, h, w) of one picture -> (*size) int64, the class of the highest score."""
    total, start = torch.zeros((), device=masks.device), 0
    for part in resized_parts(masks, size, batch, picture):
        total = total + class_scores(logits[start : start + len(part)], part)
        start += len(part)
    return total.argmax(0)


def instances(
    logits: Tensor,
    masks: Tensor,
    size: tuple[int, int],
    batch: Batch,
    picture: int,
    *,
    most: int,
    stuff: Collection[int] = (),
) -> Detections:
    """logits: (Q, K + 1), masks: (Q, h, w) of one picture -> the `most` best pairs of query and class that is no stuff,
    whose scores are multiplied with their mask's mean probability; boxes lie around the masks."""
    chances = full_precision(logits).softmax(-1)[:, :-1].clone()
    chances[:, sorted(stuff)] = -1.0
    scores, places = chances.flatten().topk(min(most, chances.numel()))
    scores, places = scores[scores >= 0], places[scores >= 0]
    queries, labels = places // chances.shape[1], places % chances.shape[1]
    found = [torch.zeros(0, *size, dtype=torch.bool, device=masks.device)]
    sure = [scores.new_zeros(0)]
    for part in resized_parts(masks[queries], size, batch, picture):
        inside = part > 0
        sure.append((part.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6))
        found.append(inside)
    scores, order = (scores * torch.cat(sure)).sort(descending=True, stable=True)
    whole = torch.cat(found)[order]
    return Detections(boxes_around(whole).to(scores.dtype), scores, labels[order], whole)


def boxes_around(masks: Tensor) -> Tensor:
    """masks: (N, H, W) bool -> (N, 4) xyxy in pixels, int64; 0 for a mask without a pixel."""
    sides = []
    for along in (1, 2):  # columns, then rows
        seen = masks.any(along)  # (N, W or H)
        count = seen.shape[1]
        numbers = torch.arange(count, device=masks.device)
        first = torch.where(seen, numbers, count).amin(1)
        last = torch.where(seen, numbers + 1, 0).amax(1)
        sides.append((torch.minimum(first, last), last))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1)


def segments(
    logits: Tensor,
    masks: Tensor,
    size: tuple[int, int],
    batch: Batch,
    picture: int,
    *,
    stuff: Collection[int],
    threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
) -> Segments:
    """logits: (Q, K + 1), masks: (Q, h, w) of one picture -> its segments.

    Queries surer than `threshold` share out the pixels: each goes to the largest product of score and mask. A query
    stays if that leaves it more than `overlap_threshold` of its mask, and keeps what of the mask it won; those of a
    class of `stuff` become one segment.
    """
    chances, labels = full_precision(logits).softmax(-1).max(-1)
    kept = (chances > threshold) & (labels != logits.shape[-1] - 1)
    chances, labels = chances[kept], labels[kept]
    if not len(chances):
        ids = torch.zeros(size, dtype=torch.int32, device=masks.device)
        return Segments(ids, labels, chances)
    own = torch.cat([part.sigmoid() for part in resized_parts(masks[kept], size, batch, picture)])  # (n, H, W)
    owners = (own * chances[:, None, None]).argmax(0)  # (H, W)
    won = torch.bincount(owners.flatten(), minlength=len(chances))
    whole = torch.stack([(each >= mask_threshold).sum() for each in own])
    inside = own.gather(0, owners[None])[0] >= mask_threshold
    left = torch.bincount(owners[inside], minlength=len(chances))
    stays = (left > 0) & (won > overlap_threshold * whole)
    numbers = [0] * len(chances)
    first: dict[int, int] = {}
    taken: list[int] = []  # the first query of each segment
    for query in stays.nonzero()[:, 0].tolist():
        label = int(labels[query])
        if label in stuff and label in first:
            numbers[query] = first[label]
            continue
        taken.append(query)
        numbers[query] = first[label] = len(taken)
    table = torch.tensor(numbers, dtype=torch.int32, device=masks.device)
    ids = torch.where(inside, table[owners], 0)
    return Segments(ids, labels[taken], chances[taken])

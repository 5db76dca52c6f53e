"""A mask for each query: its logits, its losses, and masks at the size of pictures."""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from heads.detection.matching import Matches
from heads.detection.mlp import Mlp
from heads.detection.targets import Targets
from vitdense.contracts import Batch, Outputs
from vitdense.errors import UserError
from vitdense.ops.resizing import full_precision, resize

_PIXELS_AT_ONCE = 2**23
"""So many logits at a picture's size are looked at together: a few masks of a large picture."""
_FOCAL_ALPHA = 0.25


class QueryMasks(nn.Module):
    """An embedding of each query, which times an embedding of each pixel gives the query's mask (Cheng et al. 2022,
    https://arxiv.org/abs/2112.01527; for detectors Li et al. 2023, https://arxiv.org/abs/2206.02777).

    `channels` are those of the maps that pixels are made of, finest first; `width` is the embeddings'.
    """

    def __init__(self, channels: Sequence[int], query_channels: int, width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(size, width, 1) for size in channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.pixel_embedding = nn.Conv2d(width, width, 1)
        self.query_embedding = Mlp(query_channels, query_channels, width, layers=3)

    def forward(self, queries: Tensor, maps: Sequence[Tensor]) -> Outputs:
        """queries: (B, Q, C), maps: (B, C_i, h_i, w_i), finest first -> `mask_embeddings` (B, Q, E) and
        `pixel_embeddings` (B, E, h_0, w_0).
        """
        joined: Tensor = self.laterals[-1](maps[-1])
        for lateral, finer in zip(reversed(self.laterals[:-1]), reversed(maps[:-1]), strict=True):
            joined = lateral(finer) + resize(joined, (finer.shape[-2], finer.shape[-1]))
        pixels = self.pixel_embedding(self.norm(self.smooth(joined)).relu())
        return {"mask_embeddings": self.query_embedding(queries), "pixel_embeddings": pixels}


def has_masks(outputs: Outputs) -> bool:
    """Whether a mask can be had for each query."""
    return "masks" in outputs or "mask_embeddings" in outputs


def multiplied(outputs: Outputs) -> Outputs:
    """Embeddings (B, Q, E) and (B, E, h, w) -> `masks` (B, Q, h, w), the logits of all queries."""
    return {"masks": torch.einsum("bqe,behw->bqhw", outputs["mask_embeddings"], outputs["pixel_embeddings"])}


def masks_of(outputs: Outputs, picture: int, queries: Tensor) -> Tensor:
    """queries: (n,) of one picture -> logits (n, h, w), from all masks or from the embeddings."""
    if "masks" in outputs:
        return outputs["masks"][picture, queries]
    embeddings, pixels = outputs["mask_embeddings"][picture, queries], outputs["pixel_embeddings"][picture]
    return torch.einsum("ne,ehw->nhw", embeddings, pixels)


def mask_losses(
    outputs: Outputs, matches: Matches, targets: Targets, batch: Batch, number: Tensor
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of the last layer's matched queries, () each in float32 at least: sums by target.

    Logits come from `masks` (B, Q, h, w), from embeddings, or from `matched_masks` (M, h, w), which a head makes of
    matched queries alone; they are resized to the images. Without targets both are 0, and connected to the outputs.
    """
    canvas = (batch["images"].shape[-2], batch["images"].shape[-1])
    focal, dice = [], []
    for logits, chosen, picture in _matched(outputs, matches, targets):
        if not len(logits):
            focal.append(full_precision(logits).sum())
            dice.append(focal[-1])
            continue
        wanted = _target_masks(batch, picture, canvas).to(logits.device)[chosen]
        for some, those in zip(_in_parts(logits, canvas), _in_parts(wanted, canvas), strict=True):
            # What is as large as a picture is made again in the backward pass.
            lost = checkpoint(_focal_and_dice, some, those, use_reentrant=False, preserve_rng_state=False)
            focal.append(lost[0])
            dice.append(lost[1])
    return torch.stack(focal).sum() / number, torch.stack(dice).sum() / number


def _matched(outputs: Outputs, matches: Matches, targets: Targets) -> Iterator[tuple[Tensor, Tensor, int]]:
    """For each picture: logits (n, h, w) of its matched queries, the targets they answer for, and its index."""
    most = outputs["logits"].shape[-2]
    edges = (0, *accumulate(min(count, most) for count in targets.counts))
    for picture, (start, stop) in enumerate(pairwise(edges)):
        queries = matches.queries[-1, start:stop]
        if "matched_masks" in outputs:
            logits = outputs["matched_masks"][start:stop]
        else:
            logits = masks_of(outputs, picture, queries)
        yield logits, matches.targets[-1, start:stop] - targets.starts[picture], picture


def _target_masks(batch: Batch, picture: int, canvas: tuple[int, int]) -> Tensor:
    """(N, H, W) bool, with nothing on the padding of the canvas."""
    target = batch["targets"][picture]
    if "masks" not in target:
        raise UserError(f"masks are learned, but the targets of picture {picture} have only {', '.join(target)}")
    masks = target["masks"]
    height, width = masks.shape[-2:]
    if height > canvas[0] or width > canvas[1]:
        raise UserError(f"masks of picture {picture} are {(height, width)}, larger than its image {canvas}")
    return F.pad(masks, (0, canvas[1] - width, 0, canvas[0] - height))


def _in_parts(masks: Tensor, canvas: tuple[int, int]) -> Sequence[Tensor]:
    """masks: (n, h, w) -> as many at once as may be at the size of the canvas."""
    count = max(_PIXELS_AT_ONCE // (canvas[0] * canvas[1]), 1)
    return [masks[start : start + count] for start in range(0, len(masks), count)]


def _focal_and_dice(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """logits: (n, h, w), wanted: (n, H, W) bool -> () each: sums over masks of the mean focal loss of their pixels
    (Lin et al. 2017, https://arxiv.org/abs/1708.02002), and of one less the overlap (Milletari et al. 2016,
    https://arxiv.org/abs/1606.04797).
    """
    large = resize(full_precision(logits)[None], (wanted.shape[-2], wanted.shape[-1]))[0]
    wrong = torch.where(wanted, -large, large)
    lost = F.softplus(wrong) * wrong.sigmoid().square()
    focal = torch.where(wanted, _FOCAL_ALPHA * lost, (1 - _FOCAL_ALPHA) * lost).mean((1, 2)).sum()
    chance = large.sigmoid()
    both = (chance * wanted).sum((1, 2))
    total = chance.sum((1, 2)) + wanted.sum((1, 2))
    return focal, (1 - (2 * both + 1) / (total + 1)).sum()


def masks_at(logits: Tensor, size: tuple[int, int], batch: Batch, picture: int) -> Tensor:
    """logits: (n, h, w) of one picture of the batch -> (n, *size) bool, resized a few at a time.

    Where the batch is padded, logits are resized to its images and the padding is cut off first.
    """
    maps = full_precision(logits)
    canvas, extent = size, None
    if "extents" in batch:
        canvas = (batch["images"].shape[-2], batch["images"].shape[-1])
        height, width = batch["extents"][picture].tolist()
        extent = None if (height, width) == canvas else (height, width)
    largest = (max(canvas[0], size[0]), max(canvas[1], size[1]))
    found = [torch.zeros(0, *size, dtype=torch.bool, device=maps.device)]
    for some in _in_parts(maps, largest):
        part = some[None]  # (1, n, h, w)
        if extent is not None:
            part = resize(part, canvas)[..., : extent[0], : extent[1]]
        found.append(resize(part, size)[0] > 0)
    return torch.cat(found)

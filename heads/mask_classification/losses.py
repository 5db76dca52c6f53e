"""Losses of queries with masks, for every layer that read one off: matched, and learned at points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.detection.losses import count_targets, cross_entropy
from heads.detection.matching import Matches
from heads.detection.targets import Targets
from heads.mask_classification.matching import MaskCosts, match_masks
from heads.mask_classification.points import PointConfig, draw_uncertain, read_points
from vitdense.ops.resizing import full_precision


@dataclass(frozen=True)
class Layers:
    """What L layers say of B pictures: logits (L, B, Q, K + 1), and masks as the products of `embeddings`, (B, Q, E) of
    each layer, with `pixels`, (E, h, w) of each layer and picture."""

    logits: Tensor
    embeddings: Sequence[Tensor]
    pixels: Sequence[Sequence[Tensor]]

    @classmethod
    def of(cls, logits: Tensor, embeddings: Tensor, pixels: Sequence[Tensor]) -> "Layers":
        """embeddings: (L, B, Q, E), pixels: (B, E, h, w) of each layer, or of one for all."""
        # Taken apart once: each way back from a part of a tensor would fill all of it.
        apart = [torch.unbind(each) for each in pixels]
        return cls(logits, torch.unbind(embeddings), apart * (len(logits) if len(apart) == 1 else 1))

    def masks(self, layer: int, picture: int, embeddings: Tensor) -> Tensor:
        """embeddings: (n, E) of a layer's queries -> the logits (n, h, w) of their masks."""
        return full_precision(torch.einsum("ne,ehw->nhw", embeddings, self.pixels[layer][picture]))


@dataclass(frozen=True)
class MaskLosses:
    """How masks are matched and learned; `nothing` is what a query without a target counts."""

    costs: MaskCosts
    points: PointConfig
    nothing: float

    def __call__(
        self,
        layers: Layers,
        targets: Targets,
        wanted: Sequence[Tensor],
        order: Sequence[int],
        name: Callable[[int], str],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """wanted: masks (N, H, W) bool of each picture -> of each layer (L,) the weighted mean of the cross-entropy of
        classes, and by target the sums of the masks' cross-entropy and of the overlap that they lack.

        Random points are drawn layer by layer in this `order`, as transformers draws them; `name` tells a picture.
        """
        number = count_targets(targets)
        matches: dict[int, Matches] = {}
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for layer in order:
            matches[layer] = self._match(layers, layer, targets, wanted, name)
            found[layer] = self._at_points(layers, layer, matches[layer], targets, wanted)
        count = range(len(layers.logits))
        stacked = Matches(
            matches[0].pictures,
            torch.cat([matches[layer].queries for layer in count]),
            torch.cat([matches[layer].targets for layer in count]),
        )
        label = cross_entropy(layers.logits, stacked, targets, nothing=self.nothing)
        mask, dice = (torch.stack([found[layer][kind] for layer in count]) / number for kind in (0, 1))
        return label, mask, dice

    def _match(
        self, layers: Layers, layer: int, targets: Targets, wanted: Sequence[Tensor], name: Callable[[int], str]
    ) -> Matches:
        """The pairs of one layer, as of a stack of one."""
        pictures, queries, chosen = [], [], []
        for picture, (start, masks) in enumerate(zip(targets.starts, wanted, strict=False)):
            labels = targets.labels[start : start + len(masks)]
            logits, points = layers.logits[layer, picture], self.points.count
            with torch.no_grad():
                guesses = layers.masks(layer, picture, layers.embeddings[layer][picture])
            own, others = match_masks(logits, guesses, labels, masks, self.costs, points=points, name=name(picture))
            pictures.append(torch.full_like(own, picture))
            queries.append(own)
            chosen.append(others + start)
        return Matches(torch.cat(pictures), torch.cat(queries)[None], torch.cat(chosen)[None])

    def _at_points(
        self, layers: Layers, layer: int, matches: Matches, targets: Targets, wanted: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Sums over the matched masks of a layer, () each; without any, 0, connected to what masks are made of."""
        if not matches.pictures.numel():
            made = (layers.embeddings[layer], *layers.pixels[layer])
            nothing = torch.stack([full_precision(each).sum() * 0 for each in made]).sum()
            return nothing, nothing
        counts = torch.bincount(matches.pictures, minlength=len(wanted)).tolist()
        matched = torch.split(layers.embeddings[layer][matches.pictures, matches.queries[0]], counts)  # (n, E) each
        chosen = torch.split(matches.targets[0], counts)
        parts, truths = [], []
        for picture, (start, masks) in enumerate(zip(targets.starts, wanted, strict=False)):
            parts.append(layers.masks(layer, picture, matched[picture]))
            truths.append(masks[chosen[picture] - start])
        logits = torch.cat(parts)  # (M, h, w)
        points = draw_uncertain(logits, self.points)
        places = torch.split(points, [len(each) for each in truths])
        pairs = [(each, own) for each, own in zip(truths, places, strict=True) if len(each)]
        true = torch.cat([read_points(each[:, None].to(logits.dtype), own)[:, 0] for each, own in pairs])
        return point_losses(read_points(logits[:, None], points)[:, 0], true)


def point_losses(found: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """found: (M, P) logits, true: (M, P) in 0..1 -> sums over masks, () each, of the mean cross-entropy, and of one
    less the overlap (Milletari et al. 2016, https://arxiv.org/abs/1606.04797)."""
    lost = F.binary_cross_entropy_with_logits(found, true, reduction="none").mean(1).sum()
    chance = found.sigmoid()
    both, total = (chance * true).sum(1), chance.sum(1) + true.sum(1)
    return lost, (1 - (2 * both + 1) / (total + 1)).sum()

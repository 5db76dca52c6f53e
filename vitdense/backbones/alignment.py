"""Whether the cells of a map answer to their own pixels: what a map that was floored, shifted or stretched fails."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitdense.contracts import Backbone

# Strided convolutions centre a cell on its first pixel, half a cell before the middle of what it covers; random kernels
# pull by some more. A map that is shifted by a cell is off by one.
_MOST_OFFSET = 0.99
# Where a grid lost a part of its last cell and was stretched over it, answers drift by up to a cell on the way there.
_MOST_DRIFT = 0.5
# Answers that are wider have no place of their own, and of such as are half as wide the centre is not known so well.
_MOST_SPREAD = 1.5
_SHARP = 1.0
_SHARPER = 0.6


@dataclass(frozen=True)
class Alignment:
    """One level, in its cells: how far answers lie from the pixels that cause them, how that differs by place, how wide
    the answers are, and whether what answers to the picture's last pixels lies at the end."""

    offset: float
    drift: float
    spread: float
    last_seen: bool

    @property
    def verdict(self) -> Literal["yes", "no", "unclear"]:
        """Whether every cell stands where it should; "unclear" where answers are too wide to tell, or none, as random
        weights make them in deep networks that mix the whole picture, or end in a norm whose weights begin at zero."""
        if self.spread <= _MOST_SPREAD and self.offset < _MOST_OFFSET and self.drift < _MOST_DRIFT and self.last_seen:
            return "yes"
        # Within windows an answer leans to the window's middle, which looks like drift unless it is sharper than that.
        only_drift = self.offset < _MOST_OFFSET and self.last_seen
        return "no" if self.spread <= (_SHARPER if only_drift else _SHARP) else "unclear"


@torch.no_grad()
def measure_alignment(backbone: Backbone, size: tuple[int, int]) -> list[Alignment]:
    """Each level of a backbone in eval mode, for pictures of a size that no stride should divide.

    The same square of noise, one cell wide, is put on a grey picture at places from border to border: what treats all
    places alike gives the same answer at each, moved by whole cells, with random weights as with trained ones. What
    changes everywhere alike (global attention, pooled gates) is taken off.
    """
    pictures: dict[int, list[Tensor]] = {}
    alignments = []
    for i, level in enumerate(backbone.levels):
        places = _places(*(-(-side // level.stride) for side in size))
        if level.stride not in pictures:
            pictures[level.stride] = backbone(_touched(len(backbone.mean), size, places, level.stride))
        maps = pictures[level.stride][i]
        changes = maps[1:] - maps[:1]
        everywhere = changes.flatten(2).median(dim=2).values[..., None, None]  # (places, C, 1, 1)
        alignments.append(_judge((changes - everywhere).square().sum(1).sqrt(), places))
    return alignments


def _places(rows: int, columns: int) -> list[tuple[int, int]]:
    """Whole cells near two corners and in the middle, and the last cell, of which the picture may hold a part only."""
    near, far = (min(2, rows // 2), min(2, columns // 2)), (max(rows - 3, rows // 2), max(columns - 3, columns // 2))
    return [near, (rows // 2, columns // 2), far, (rows - 1, columns - 1)]


def _touched(channels: int, size: tuple[int, int], places: list[tuple[int, int]], stride: int) -> Tensor:
    """(1 + places, C, H, W): grey, and grey with the square at each place."""
    images = torch.full((1 + len(places), channels, *size), 0.5)
    square = 3.0 * torch.randn(channels, stride, stride, generator=torch.Generator().manual_seed(0))
    for image, (row, column) in zip(images[1:], places, strict=True):
        target = image[:, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
        target += square[:, : target.shape[1], : target.shape[2]]
    return images


def _judge(changes: Tensor, places: list[tuple[int, int]]) -> Alignment:
    """changes: (places, h, w), 0 or more."""
    answers = [_centre_and_spread(change) for change in changes[:-1]]
    away = torch.stack([centre - torch.tensor(place) for (centre, _), place in zip(answers, places, strict=False)])
    last = changes[-1]
    peak = divmod(int(last.argmax()), last.shape[1])
    return Alignment(
        offset=float(away.mean(0).abs().max()),
        drift=float((away.amax(0) - away.amin(0)).max()),
        spread=max(spread for _, spread in answers),
        last_seen=bool(last.max() > 0) and all(abs(a - b) <= 2 for a, b in zip(peak, places[-1], strict=True)),
    )


def _centre_and_spread(change: Tensor) -> tuple[Tensor, float]:
    """change: (h, w) -> the row and column about which its greater part lies, and how far from there."""
    weights = (change / change.max() - 0.25).clamp(min=0).double()
    weights /= weights.sum()
    cells = torch.stack(torch.meshgrid(*map(torch.arange, change.shape), indexing="ij"), dim=-1)  # (h, w, 2)
    centre = (weights[..., None] * cells).sum((0, 1))
    spread = (weights * (cells - centre).square().sum(-1)).sum().sqrt()
    return centre, float(spread)

"""The first of two stages: every cell of the encoder proposes a box, and the best become queries (Deformable DETR, A.4,
https://arxiv.org/abs/2010.04159)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heads.deformable.grids import Grids
from heads.detection.positions import sines

_SIDE = 0.05
"""The side of a proposal on the finest level, in shares of the picture; each level doubles it."""


@dataclass(frozen=True)
class Proposals:
    """Of all S cells: logits (B, S, K) and coords (B, S, 4), boxes before the sigmoid; of the `count` best, `chosen`
    (B, count) are the cells, `boxes` (B, count, 4) where they lie, which no gradient reaches."""

    logits: Tensor
    coords: Tensor
    chosen: Tensor
    boxes: Tensor


class ProposalHead(nn.Module):
    """Cells to queries; `mixed` takes the positions from the proposals and leaves the content to be learned, as DINO
    does (https://arxiv.org/abs/2203.03605), and chooses by the best class instead of one that stands for all."""

    def __init__(self, channels: int, *, mixed: bool) -> None:
        super().__init__()
        self.channels, self.mixed = channels, mixed
        self.enc_output = nn.Linear(channels, channels)
        self.enc_output_norm = nn.LayerNorm(channels)
        width = channels if mixed else 2 * channels
        self.pos_trans = nn.Linear(2 * channels, width)
        self.pos_trans_norm = nn.LayerNorm(width)

    def propose(
        self, cells: Tensor, grids: Grids, class_embed: nn.Module, bbox_embed: nn.Module, count: int
    ) -> Proposals:
        """cells: (B, S, C) -> as many proposals as `count`, or as there are cells."""
        starts, kept = anchors(grids, cells)
        tokens = self.enc_output_norm(self.enc_output(cells.masked_fill(~kept, 0.0)))
        logits, coords = class_embed(tokens), bbox_embed(tokens) + starts
        ranks = logits.amax(-1) if self.mixed else logits[..., 0]
        chosen = ranks.topk(min(count, ranks.shape[1]), dim=1).indices
        best = coords.gather(1, chosen[..., None].expand(-1, -1, 4)).detach()
        return Proposals(logits, coords, chosen, best)

    def embed(self, coords: Tensor) -> Tensor:
        """coords: (B, Q, 4), boxes before the sigmoid -> (B, Q, 2C): positions, then content; mixed: positions."""
        places = coords.sigmoid().float() * (2 * math.pi)  # single precision is enough for angles, half is not
        waves = sines(places, self.channels // 2).flatten(-2).to(coords.dtype)  # (B, Q, 2C)
        out: Tensor = self.pos_trans_norm(self.pos_trans(waves))
        return out


def anchors(grids: Grids, cells: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes (B or 1, S, 4) before the sigmoid that proposals start from, one around each cell of (B, S, C), and
    which of them (B or 1, S, 1) may be proposed: infinite are those of padding, at the very edge, or too large.
    """
    precise = cells.new_empty(0, dtype=torch.promote_types(cells.dtype, torch.float32))
    centres = grids.centres(precise)  # (B or 1, S, 2)
    sides = [
        centres.new_full((height * width,), _SIDE * 2.0**level) for level, (height, width) in enumerate(grids.shapes)
    ]
    boxes = torch.cat([centres, torch.cat(sides)[:, None].expand(len(centres), -1, 2)], dim=-1)  # (B or 1, S, 4)
    kept = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True)
    if grids.valid is not None:
        kept = kept & grids.valid[..., None]
    return (boxes / (1 - boxes)).log().masked_fill(~kept, torch.inf), kept

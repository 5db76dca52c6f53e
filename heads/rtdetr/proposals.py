"""Where RT-DETR's queries come from: the cells of all levels whose best score is highest, with a box of their own."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heads.detection.mlp import Mlp
from heads.rtdetr.config import RtDetrConfig
from heads.rtdetr.decoder import score_layer, still
from vitdense.ops.deformable import Shapes

_SIDE, _MARGIN = 0.05, 0.01


@dataclass(frozen=True)
class Proposals:
    """Q cells: queries (B, Q, C), logits (B, Q, K), boxes (B, Q, 4) as (cx, cy, w, h) in 0..1."""

    queries: Tensor
    logits: Tensor
    boxes: Tensor


def anchors(shapes: Shapes, like: Tensor) -> tuple[Tensor, Tensor]:
    """A square around each cell's middle, a twentieth of the picture wide on the first grid and twice as wide on each
    next one -> what a sigmoid makes them of (S, 4), and which keep away from 0 and 1 (S, 1) bool.

    Those that don't are at the largest number, so that their boxes are the whole picture.
    """
    found = []
    for level, (height, width) in enumerate(shapes):
        x = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) / width
        y = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) / height
        side = torch.full((), _SIDE * 2**level, dtype=like.dtype, device=like.device).expand(height, width)
        found.append(
            torch.stack([x.expand(height, width), y[:, None].expand(height, width), side, side], -1).flatten(0, 1)
        )
    boxes = torch.cat(found)
    inside = ((boxes > _MARGIN) & (boxes < 1 - _MARGIN)).all(-1, keepdim=True)
    return torch.where(inside, (boxes / (1 - boxes)).log(), torch.finfo(like.dtype).max), inside


class Selection(nn.Module):
    """Scores for all cells, boxes for the chosen ones."""

    def __init__(self, config: RtDetrConfig, num_classes: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.num_queries = config.num_queries
        linear = nn.Linear(width, width)
        nn.init.xavier_uniform_(linear.weight)
        self.enc_output = nn.Sequential(linear, nn.LayerNorm(width, eps=config.layer_norm_eps))
        self.enc_score_head = score_layer(width, num_classes)
        self.enc_bbox_head = still(Mlp(width, width, 4, layers=3))

    def forward(self, memory: Tensor, shapes: Shapes) -> Proposals:
        """memory: (B, S, C), the grids of `shapes` one after another -> as many queries as there are to be, or S."""
        precise = torch.promote_types(memory.dtype, torch.float32)
        places, inside = anchors(shapes, memory.new_empty(0, dtype=precise))
        features = self.enc_output(memory * inside.to(memory.dtype))
        logits = self.enc_score_head(features)
        best = logits.amax(-1)
        _, chosen = best.topk(min(self.num_queries, best.shape[1]), dim=1)

        def of(tensor: Tensor) -> Tensor:
            return tensor.gather(1, chosen[..., None].expand(-1, -1, tensor.shape[-1]))

        queries = of(features)
        boxes = (self.enc_bbox_head(queries) + places[chosen]).sigmoid()
        return Proposals(queries, of(logits), boxes)

"""D-FINE's decoder: the sides of a box move by the means of distributions that each layer refines (Peng et al. 2024,
https://arxiv.org/abs/2410.13842)."""

import torch
from torch import Tensor, nn

from heads.detection.boxes import inverse_sigmoid, to_centres
from heads.detection.mlp import Mlp
from heads.rtdetr.attention import FeedForward, SelfAttention
from heads.rtdetr.config import DistributionConfig, RtDetrConfig
from heads.rtdetr.decoder import Refined, box_attention, query_positions, score_layer, still
from vitdense.ops.deformable import Shapes

_HALF_LARGEST = 65504.0  # of float16, which the authors train in
_FARTHEST = 10.0


def distances(config: DistributionConfig, like: Tensor) -> Tensor:
    """(bins + 1,): what each value of a side's distribution stands for, growing by powers away from 0."""
    most = config.up * config.reg_scale
    half = config.bins // 2
    steps = torch.arange(1, half, dtype=like.dtype, device=like.device)
    powers = (most + 1) ** (steps / (half - 1)) - 1
    zero = steps.new_zeros(1)
    end = zero + 2 * most
    return torch.cat([-end, -powers.flip(0), zero, powers, end])


def moved(origins: Tensor, shifts: Tensor, reg_scale: float) -> Tensor:
    """origins: (..., 4) as (cx, cy, w, h), shifts: (..., 4) of left, top, right, bottom -> boxes (..., 4)."""
    centres, unit = origins[..., :2], origins[..., 2:] / reg_scale
    upper = centres - (0.5 * reg_scale + shifts[..., :2]) * unit
    lower = centres + (0.5 * reg_scale + shifts[..., 2:]) * unit
    return to_centres(torch.cat([upper, lower], dim=-1))


class Gate(nn.Module):
    """How much of what queries were and of what they read goes on, by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * width, 2 * width)
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.gate.weight)  # half open
        nn.init.zeros_(self.gate.bias)

    def forward(self, queries: Tensor, read: Tensor) -> Tensor:
        """queries, read: (B, Q, C) -> (B, Q, C)."""
        keep, take = self.gate(torch.cat([queries, read], dim=-1)).sigmoid().chunk(2, dim=-1)
        out: Tensor = self.norm(keep * queries + take * read)
        return out


class Quality(nn.Module):
    """What the sharpness of a box's distributions adds to its scores."""

    def __init__(self, config: DistributionConfig) -> None:
        super().__init__()
        self.bins, self.top_values = config.bins, config.top_values
        inputs = 4 * (config.top_values + 1)
        self.reg_conf = still(Mlp(inputs, config.quality_dim, 1, layers=config.quality_layers))

    def forward(self, logits: Tensor, corners: Tensor) -> Tensor:
        """logits: (B, Q, K), corners: (B, Q, 4 * (bins + 1)) -> (B, Q, K)."""
        sides = corners.view(*corners.shape[:-1], 4, self.bins + 1)
        best = sides.softmax(-1).topk(self.top_values, dim=-1).values
        seen = torch.cat([best, best.mean(-1, keepdim=True)], dim=-1).flatten(2)  # (B, Q, 4 * (top + 1))
        added: Tensor = self.reg_conf(seen)
        return logits + added


class DistributionLayer(nn.Module):
    """As RT-DETR's, with a gate in the place of a sum behind the attention to the levels, which projects nothing."""

    def __init__(self, config: RtDetrConfig) -> None:
        super().__init__()
        width, eps = config.hidden_dim, config.layer_norm_eps
        self.self_attn = SelfAttention(width, heads=config.decoder_heads, dropout=config.dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.encoder_attn = box_attention(config, projects=False)
        self.gateway = Gate(width)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp = FeedForward(width, config.decoder_ffn_dim, activation=config.decoder_activation, dropout=0.0)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(
        self, queries: Tensor, positions: Tensor, boxes: Tensor, memory: Tensor, shapes: Shapes, visible: Tensor | None
    ) -> Tensor:
        """queries, positions: (B, Q, C), boxes: (B, Q, 4), memory: (B, S, C), visible: (Q, Q) bool -> (B, Q, C)."""
        seen = self.self_attn(queries, positions, visible)
        queries = self.self_attn_layer_norm(queries + self.dropout(seen))
        read = self.encoder_attn(queries + positions, boxes, memory, shapes)
        queries = self.gateway(queries, self.dropout(read))
        added = (queries + self.mlp(queries)).clamp(-_HALF_LARGEST, _HALF_LARGEST)
        out: Tensor = self.final_layer_norm(added)
        return out


class DistributionDecoder(nn.Module):
    """The first layer moves the boxes as RT-DETR does; distributions move those, and each layer adds to them."""

    def __init__(self, config: RtDetrConfig, num_classes: int) -> None:
        super().__init__()
        width, layers = config.hidden_dim, config.decoder_layers
        self.config = config.distribution
        self.layers = nn.ModuleList(DistributionLayer(config) for _ in range(layers))
        self.query_pos_head = query_positions(width)
        self.pre_bbox_head = still(Mlp(width, width, 4, layers=3))
        self.class_embed = nn.ModuleList(score_layer(width, num_classes) for _ in range(layers))
        corners = 4 * (config.distribution.bins + 1)
        self.bbox_embed = nn.ModuleList(still(Mlp(width, width, corners, layers=3)) for _ in range(layers))
        self.lqe_layers = nn.ModuleList(Quality(config.distribution) for _ in range(layers))

    def forward(
        self, queries: Tensor, boxes: Tensor, memory: Tensor, shapes: Shapes, visible: Tensor | None
    ) -> Refined:
        """queries: (B, Q, C), boxes: (B, Q, 4) in 0..1, memory: (B, S, C), visible: (Q, Q) bool or None."""
        last, logits, found, distributions = len(self.layers) - 1, [], [], []
        values = distances(self.config, boxes)
        before = corners = torch.zeros((), dtype=queries.dtype, device=queries.device)
        origins = boxes
        for index, layer in enumerate(self.layers):
            positions = self.query_pos_head(boxes).clamp(-_FARTHEST, _FARTHEST)
            queries = layer(queries, positions, boxes, memory, shapes, visible)
            if index == 0:
                first = (self.pre_bbox_head(queries) + inverse_sigmoid(boxes)).sigmoid()
                origins = first.detach()
            corners = self.bbox_embed[index](queries + before) + corners
            shifts = corners.unflatten(-1, (4, -1)).softmax(-1).to(values.dtype) @ values
            refined = moved(origins, shifts, self.config.reg_scale)
            boxes, before = refined.detach(), queries.detach()
            if self.training or index == last:
                plain = self.class_embed[index](queries)
                if self.training and index == 0:
                    logits.append(plain)
                    found.append(first)
                logits.append(self.lqe_layers[index](plain, corners))
                found.append(refined)
                distributions.append(corners)
        return Refined(torch.stack(logits), torch.stack(found), queries, torch.stack(distributions), origins)

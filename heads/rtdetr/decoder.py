"""RT-DETR's decoder: queries look at each other and at points of the levels, and move their boxes, layer by layer."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heads.detection.boxes import inverse_sigmoid
from heads.detection.mlp import Mlp
from heads.rtdetr.attention import BoxAttention, FeedForward, SelfAttention
from heads.rtdetr.config import RtDetrConfig
from vitdense.ops.deformable import Shapes


@dataclass(frozen=True)
class Refined:
    """What the layers that answer say, L of them in training and the last one else: logits (L, B, Q, K), boxes
    (L, B, Q, 4), and the last one's queries (B, Q, C).

    Of distributions besides, corners (L', B, Q, 4 * (bins + 1)) and origins (B, Q, 4), the boxes that they move; the
    first of the layers is then what came before any distribution, so that in training L = L' + 1.
    """

    logits: Tensor
    boxes: Tensor
    queries: Tensor
    corners: Tensor | None = None
    origins: Tensor | None = None


class DecoderLayer(nn.Module):
    """Attention among queries, attention to the levels, a perceptron, each added and normed."""

    def __init__(self, config: RtDetrConfig) -> None:
        super().__init__()
        width, eps = config.hidden_dim, config.layer_norm_eps
        self.self_attn = SelfAttention(width, heads=config.decoder_heads, dropout=config.dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.encoder_attn = box_attention(config, projects=True)
        self.encoder_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp = FeedForward(
            width, config.decoder_ffn_dim, activation=config.decoder_activation, dropout=config.dropout
        )
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(
        self, queries: Tensor, positions: Tensor, boxes: Tensor, memory: Tensor, shapes: Shapes, visible: Tensor | None
    ) -> Tensor:
        """queries, positions: (B, Q, C), boxes: (B, Q, 4), memory: (B, S, C), visible: (Q, Q) bool -> (B, Q, C)."""
        seen = self.self_attn(queries, positions, visible)
        queries = self.self_attn_layer_norm(queries + self.dropout(seen))
        read = self.encoder_attn(queries + positions, boxes, memory, shapes)
        queries = self.encoder_attn_layer_norm(queries + self.dropout(read))
        out: Tensor = self.final_layer_norm(queries + self.mlp(queries))
        return out


class Decoder(nn.Module):
    """Each layer adds to what a sigmoid makes its box of, and hands the box on without a gradient."""

    def __init__(self, config: RtDetrConfig, num_classes: int) -> None:
        super().__init__()
        width, layers = config.hidden_dim, config.decoder_layers
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(layers))
        self.query_pos_head = query_positions(width)
        self.class_embed = nn.ModuleList(score_layer(width, num_classes) for _ in range(layers))
        self.bbox_embed = nn.ModuleList(still(Mlp(width, width, 4, layers=3)) for _ in range(layers))

    def forward(
        self, queries: Tensor, boxes: Tensor, memory: Tensor, shapes: Shapes, visible: Tensor | None
    ) -> Refined:
        """queries: (B, Q, C), boxes: (B, Q, 4) in 0..1, memory: (B, S, C), visible: (Q, Q) bool or None."""
        logits, found = [], []
        for layer, score, move in zip(self.layers, self.class_embed, self.bbox_embed, strict=True):
            queries = layer(queries, self.query_pos_head(boxes), boxes, memory, shapes, visible)
            moved = (move(queries) + inverse_sigmoid(boxes)).sigmoid()
            boxes = moved.detach()
            if self.training or layer is self.layers[-1]:
                logits.append(score(queries))
                found.append(moved)
        return Refined(torch.stack(logits), torch.stack(found), queries)


def score_layer(width: int, num_classes: int) -> nn.Linear:
    """(B, Q, C) -> (B, Q, K): as published, every class is unlikely at first."""
    layer = nn.Linear(width, num_classes)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.constant_(layer.bias, -math.log(num_classes))
    return layer


def still(mlp: Mlp) -> Mlp:
    """The same, so that it gives 0 at first."""
    for name in ("weight", "bias"):
        nn.init.zeros_(mlp.layers[-1].get_parameter(name))
    return mlp


def query_positions(width: int) -> Mlp:
    """(B, Q, 4), boxes -> (B, Q, C)."""
    mlp = Mlp(4, 2 * width, width, layers=2)
    for layer in mlp.layers:
        nn.init.xavier_uniform_(layer.get_parameter("weight"))
    return mlp


def box_attention(config: RtDetrConfig, *, projects: bool) -> BoxAttention:
    """A decoder layer's way to the levels."""
    return BoxAttention(
        config.hidden_dim,
        heads=config.decoder_heads,
        points=config.points,
        offset_scale=config.offset_scale,
        discrete=config.decoder_method == "discrete",
        projects=projects,
    )

"""The transformer of DETR: an encoder of a map's cells and a decoder of object queries (Carion et al. 2020,
https://arxiv.org/abs/2005.12872); parameters are named as in transformers' DETR."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Widths and dropout that all layers of a transformer share; `mlp` is the width between a layer's two products."""

    channels: int
    num_heads: int
    mlp: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0


class Attention(nn.Module):
    """Attention of several heads, whose keys may be other than its values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.num_heads, self.dropout = shape.num_heads, shape.attention_dropout
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(shape.channels, shape.channels) for _ in range(4)
        )

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """queries: (B, Q, C), keys and values: (B, N, C), mask: (B, 1, 1, N) bool, what is seen -> (B, Q, C)."""
        given = zip((self.q_proj, self.k_proj, self.v_proj), (queries, keys, values), strict=True)
        q, k, v = (layer(each).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer, each in given)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        joined: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return joined


class FeedForward(nn.Module):
    """Two linear layers with ReLU between them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.channels, shape.mlp)
        self.fc2 = nn.Linear(shape.mlp, shape.channels)
        self.dropout = nn.Dropout(shape.activation_dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, C) -> (B, N, C)."""
        out: Tensor = self.fc2(self.dropout(self.fc1(tokens).relu_()))
        return out


class EncoderLayer(nn.Module):
    """Cells look at each other."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.self_attn_layer_norm = nn.LayerNorm(shape.channels)
        self.mlp = FeedForward(shape)
        self.final_layer_norm = nn.LayerNorm(shape.channels)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """tokens: (B, N, C), positions: (B or 1, N, C), mask: (B, 1, 1, N) bool -> (B, N, C)."""
        placed = tokens + positions
        tokens = self.self_attn_layer_norm(tokens + self.dropout(self.self_attn(placed, placed, tokens, mask)))
        out: Tensor = self.final_layer_norm(tokens + self.dropout(self.mlp(tokens)))
        return out


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the cells."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.self_attn_layer_norm = nn.LayerNorm(shape.channels)
        self.encoder_attn = Attention(shape)
        self.encoder_attn_layer_norm = nn.LayerNorm(shape.channels)
        self.mlp = FeedForward(shape)
        self.final_layer_norm = nn.LayerNorm(shape.channels)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, queries: Tensor, places: Tensor, keys: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """queries: (B, Q, C), places: (Q, C) added to them, memory: (B, N, C), keys: memory with its positions ->
        (B, Q, C)."""
        placed = queries + places
        queries = self.self_attn_layer_norm(queries + self.dropout(self.self_attn(placed, placed, queries)))
        seen = self.encoder_attn(queries + places, keys, memory, mask)
        queries = self.encoder_attn_layer_norm(queries + self.dropout(seen))
        out: Tensor = self.final_layer_norm(queries + self.dropout(self.mlp(queries)))
        return out


class Encoder(nn.Module):
    """Layers over the cells of a map."""

    def __init__(self, shape: Shape, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(layers))
        init_products(self)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """tokens: (B, N, C), positions: (B or 1, N, C), mask: (B, 1, 1, N) bool, what is no padding -> (B, N, C)."""
        for layer in self.layers:
            tokens = layer(tokens, positions, mask)
        return tokens


class Decoder(nn.Module):
    """Layers over object queries, which begin as zeros.

    One norm reads off every layer. `chained_norm`: each layer goes on from what was read off, and the last is normed
    twice, as transformers runs models that it trained with auxiliary losses.
    """

    def __init__(self, shape: Shape, layers: int, *, chained_norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(layers))
        self.layernorm = nn.LayerNorm(shape.channels)
        self.chained_norm = chained_norm
        init_products(self)

    def forward(self, places: Tensor, memory: Tensor, positions: Tensor, mask: Tensor | None, *, every: bool) -> Tensor:
        """places: (Q, C), memory: (B, N, C), positions: (B or 1, N, C), mask: (B, 1, 1, N) bool -> (L, B, Q, C) of
        every layer, or (1, B, Q, C) of the last.
        """
        keys = memory + positions
        queries = memory.new_zeros(memory.shape[0], *places.shape)  # len() would fix it in exported graphs
        states = []
        for layer in self.layers:
            queries = layer(queries, places, keys, memory, mask)
            if self.chained_norm:
                queries = self.layernorm(queries)
            states.append(queries)
        if not every:
            out: Tensor = self.layernorm(queries[None])
        elif self.chained_norm:
            out = torch.stack([*states[:-1], self.layernorm(queries)])
        else:
            out = self.layernorm(torch.stack(states))
        return out


def init_products(module: nn.Module) -> None:
    """Fresh weights as published: every matrix by Glorot's rule."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)

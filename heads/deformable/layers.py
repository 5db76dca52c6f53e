"""The layers of Deformable DETR's encoder and decoder (Zhu et al. 2021, https://arxiv.org/abs/2010.04159); parameters
are named as in transformers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.deformable.grids import Grids
from vitdense.layers.deformable import DeformableAttention


class EncoderLayer(nn.Module):
    """Every cell reads all levels around itself; norms come after the sums."""

    def __init__(
        self, channels: int, *, num_heads: int, num_levels: int, points: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(channels, num_heads=num_heads, num_levels=num_levels, num_points=points)
        self.self_attn_layer_norm = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, hidden=hidden, dropout=dropout)
        self.final_layer_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, cells: Tensor, positions: Tensor, references: Tensor, grids: Grids, padding: Tensor | None
    ) -> Tensor:
        """cells: (B, S, C), positions: (B or 1, S, C), references: (B or 1, S, L or 1, 2) -> (B, S, C)."""
        read = self.self_attn(cells + positions, references, cells, grids.shapes, padding)
        cells = self.self_attn_layer_norm(cells + self.dropout(read))
        out: Tensor = self.final_layer_norm(cells + self.mlp(cells))
        return out


class DecoderLayer(nn.Module):
    """Queries attend to each other, then read the encoder's cells around their references."""

    def __init__(
        self, channels: int, *, num_heads: int, num_levels: int, points: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(channels, num_heads=num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(channels)
        self.encoder_attn = DeformableAttention(channels, num_heads=num_heads, num_levels=num_levels, num_points=points)
        self.encoder_attn_layer_norm = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, hidden=hidden, dropout=dropout)
        self.final_layer_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        cells: Tensor,
        grids: Grids,
        padding: Tensor | None,
        allowed: Tensor | None,
    ) -> Tensor:
        """queries, positions: (B, Q, C), references: (B, Q, L or 1, 2 or 4), cells: (B, S, C) -> (B, Q, C).

        `allowed` (Q, Q) bool says which query (row) may look at which (column); None: all at all.
        """
        queries = self.self_attn_layer_norm(queries + self.dropout(self.self_attn(queries, positions, allowed)))
        read = self.encoder_attn(queries + positions, references, cells, grids.shapes, padding)
        queries = self.encoder_attn_layer_norm(queries + self.dropout(read))
        out: Tensor = self.final_layer_norm(queries + self.mlp(queries))
        return out


class SelfAttention(nn.Module):
    """Attention whose queries and keys know their positions, and whose values don't."""

    def __init__(self, channels: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.o_proj = nn.Linear(channels, channels)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, positions: Tensor, allowed: Tensor | None) -> Tensor:
        """queries, positions: (B, Q, C), allowed: (Q, Q) bool -> (B, Q, C)."""
        placed = queries + positions
        q, k, v = (self._by_head(each) for each in (self.q_proj(placed), self.k_proj(placed), self.v_proj(queries)))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _by_head(self, tokens: Tensor) -> Tensor:
        """tokens: (B, Q, C) -> (B, heads, Q, d)."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with ReLU between them."""

    def __init__(self, channels: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (..., C) -> (..., C)."""
        out: Tensor = self.dropout(self.fc2(torch.relu_(self.fc1(tokens))))
        return out


def inverse_sigmoid(shares: Tensor) -> Tensor:
    """shares: (...) in 0..1 -> (...), finite at 0 and 1 too."""
    least = 1e-5
    shares = shares.clamp(0, 1)
    return (shares.clamp_min(least) / (1 - shares).clamp_min(least)).log()

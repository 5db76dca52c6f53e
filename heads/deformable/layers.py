"""The layers of Deformable DETR's encoder and decoder (Zhu et al. 2021, https://arxiv.org/abs/2010.04159); parameters
are named as in transformers."""

from torch import Tensor, nn

from heads.deformable.grids import Grids
from heads.detection.transformer import Attention, FeedForward, Shape, init_products
from vitdense.layers.deformable import DeformableAttention
from vitdense.layers.eager import is_bare
from vitdense.layers.post_norm import normed_sum_with_mlp


class EncoderLayer(nn.Module):
    """Every cell reads all levels around itself; norms come after the sums."""

    def __init__(self, shape: Shape, *, levels: int, points: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(
            shape.channels, num_heads=shape.num_heads, num_levels=levels, num_points=points
        )
        self.self_attn_layer_norm = nn.LayerNorm(shape.channels)
        self.mlp = FeedForward(shape)
        self.final_layer_norm = nn.LayerNorm(shape.channels)
        self.dropout = nn.Dropout(shape.dropout)
        init_products(self.mlp)

    def forward(
        self, cells: Tensor, positions: Tensor, references: Tensor, grids: Grids, padding: Tensor | None
    ) -> Tensor:
        """cells: (B, S, C), positions: (B or 1, S, C), references: (B or 1, S, L or 1, 2) -> (B, S, C)."""
        read = self.self_attn(cells, references, cells, grids.shapes, padding, positions)
        cells = self.self_attn_layer_norm(cells + self.dropout(read))
        return fed_forward(cells, self.mlp, self.dropout, self.final_layer_norm)


class DecoderLayer(nn.Module):
    """Queries attend to each other, then read the encoder's cells around their references."""

    def __init__(self, shape: Shape, *, levels: int, points: int) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.self_attn_layer_norm = nn.LayerNorm(shape.channels)
        self.encoder_attn = DeformableAttention(
            shape.channels, num_heads=shape.num_heads, num_levels=levels, num_points=points
        )
        self.encoder_attn_layer_norm = nn.LayerNorm(shape.channels)
        self.mlp = FeedForward(shape)
        self.final_layer_norm = nn.LayerNorm(shape.channels)
        self.dropout = nn.Dropout(shape.dropout)
        init_products(self.mlp)
        init_products(self.self_attn)

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
        placed = queries + positions
        seen = self.self_attn(placed, placed, queries, allowed)
        queries = self.self_attn_layer_norm(queries + self.dropout(seen))
        read = self.encoder_attn(queries, references, cells, grids.shapes, padding, positions)
        queries = self.encoder_attn_layer_norm(queries + self.dropout(read))
        return fed_forward(queries, self.mlp, self.dropout, self.final_layer_norm)


def fed_forward(tokens: Tensor, mlp: FeedForward, dropout: nn.Dropout, norm: nn.LayerNorm) -> Tensor:
    """tokens: (B, N, C) -> norm(tokens + mlp(tokens)), (B, N, C), leanly where nothing is dropped."""
    drops = any(each.training and each.p > 0 for each in (dropout, mlp.dropout))
    if not drops and is_bare(FeedForward, mlp) and is_bare(nn.Dropout, dropout, mlp.dropout):
        return normed_sum_with_mlp(tokens, mlp.fc1, mlp.fc2, norm)
    out: Tensor = norm(tokens + dropout(mlp(tokens)))
    return out

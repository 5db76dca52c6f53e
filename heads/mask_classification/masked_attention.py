"""Queries that attend to the maps only where the masks are that they gave so far (Mask2Former, Cheng et al. 2022,
https://arxiv.org/abs/2112.01527)."""

import torch
from torch import Tensor, nn

from heads.deformable.layers import fed_forward
from heads.detection.mlp import Mlp
from heads.detection.transformer import Attention, FeedForward, Shape, init_products
from heads.mask_classification.pixel_decoder import place_cells
from vitdense.ops.resizing import resize


class DecoderLayer(nn.Module):
    """Queries look at the cells of their masks, then at each other; norms come after the sums."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.cross_attn = Attention(shape)
        self.cross_attn_layer_norm = nn.LayerNorm(shape.channels)
        self.self_attn = Attention(shape)
        self.self_attn_layer_norm = nn.LayerNorm(shape.channels)
        self.mlp = FeedForward(shape)
        self.final_layer_norm = nn.LayerNorm(shape.channels)
        self.dropout = nn.Dropout(shape.dropout)
        init_products(self)

    def forward(self, queries: Tensor, places: Tensor, keys: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
        """queries: (B, Q, C), places: (Q, C) added to them, memory: (B, N, C), keys: memory with its positions, seen:
        (B, 1, Q, N) bool -> (B, Q, C)."""
        read = self.cross_attn(queries + places, keys, memory, seen)
        queries = self.cross_attn_layer_norm(queries + self.dropout(read))
        placed = queries + places
        queries = self.self_attn_layer_norm(queries + self.dropout(self.self_attn(placed, placed, queries)))
        return fed_forward(queries, self.mlp, self.dropout, self.final_layer_norm)


class MaskedDecoder(nn.Module):
    """Layers that read one map after the other, the coarsest first, `levels` in turn; with `projects` the maps, of
    `map_channels`, are projected first."""

    def __init__(
        self,
        shape: Shape,
        mask_channels: int,
        map_channels: int,
        *,
        queries: int,
        layers: int,
        levels: int,
        projects: bool,
    ) -> None:
        super().__init__()
        width = shape.channels
        self.queries_features = nn.Embedding(queries, width)
        self.queries_embedder = nn.Embedding(queries, width)
        self.level_embed = nn.Embedding(levels, width)
        self.input_projections = nn.ModuleList(
            nn.Conv2d(map_channels, width, 1) if projects else nn.Identity() for _ in range(levels)
        )
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(layers))
        self.layernorm = nn.LayerNorm(width)
        self.mask_embedder = Mlp(width, width, mask_channels, layers=3)

    def forward(self, maps: list[Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
        """maps: (B, C, h_i, w_i), the coarsest first, pixels: (B, E, h, w) -> the queries before each layer and after
        the last, normed, (L, B, Q, C), and what they make masks of pixels with, (L, B, Q, E)."""
        memory, keys, small = [], [], []
        for given, project, level in zip(maps, self.input_projections, self.level_embed.weight, strict=True):
            cells = project(given).flatten(2).mT + level  # (B, N, C)
            memory.append(cells)
            keys.append(cells + place_cells(given, cells.shape[-1]).to(cells.dtype))
            # Masks are products with pixels, so that resized masks are products with resized pixels.
            small.append(resize(pixels.detach(), (given.shape[-2], given.shape[-1])).flatten(2))  # (B, E, N)
        places = self.queries_embedder.weight
        queries = self.queries_features.weight.expand(pixels.shape[0], -1, -1)
        states, embeddings = [self.layernorm(queries)], []
        embeddings.append(self.mask_embedder(states[0]))
        for index, layer in enumerate(self.layers):
            turn = index % len(maps)
            seen = visible(embeddings[-1].detach() @ small[turn])
            queries = layer(queries, places, keys[turn], memory[turn], seen[:, None])
            states.append(self.layernorm(queries))
            embeddings.append(self.mask_embedder(states[-1]))
        return torch.stack(states), torch.stack(embeddings)


def visible(masks: Tensor) -> Tensor:
    """masks: (B, Q, N) logits -> (B, Q, N) bool: where the mask is; everywhere, where it is nowhere."""
    inside = masks.sigmoid() >= 0.5
    return inside | ~inside.any(-1, keepdim=True)

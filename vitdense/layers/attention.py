"""Multi-head self-attention over all tokens (https://arxiv.org/abs/1706.03762), and what positions add to it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.layers.masked import masked_attention
from vitdense.layers.position import Grid
from vitdense.layers.relative import decomposed_bias, relation_index, resize_relations
from vitdense.layers.rotary import Rotary, axial_tables, rotary_tables, rotate_halves, rotate_neighbours

QkvBias = bool | Literal["qv"]
Relations = Literal["none", "table", "decomposed", "rope_index", "rope_unit", "rope_axes"]
Attending = Relations | Literal["causal", "masked", "dot_product"]


class Surroundings(NamedTuple):
    """What all blocks of one forward pass share: the patches' grid, (h, w) or (t, h, w), and tables made for it."""

    grid: Grid
    tables: tuple[Tensor, ...] = ()
    visible: Tensor | None = None
    """Which of all N tokens the first G may attend to, (B, 1, G, N) bool; None: they all may."""


@dataclass(frozen=True)
class AttentionOptions:
    """`stored_grid` cells a side and `num_prefix` tokens before them are what tables of positions are made for.

    `qkv_bias` "qv" gives none to the keys, as BEiT has it. `norm_eps` norms the heads' outputs before the projection.
    `rope_periods` replace those that rotary attention in -1..1 computes.
    """

    dim: int
    num_heads: int
    stored_grid: int = 1
    num_prefix: int = 0
    qkv_bias: QkvBias = True
    norm_eps: float | None = None
    rope_periods: tuple[float, ...] | None = None


class Attention(nn.Module):
    """Every token attends to every token; torch picks the kernel."""

    def __init__(self, options: AttentionOptions) -> None:
        super().__init__()
        dim, keyless = options.dim, options.qkv_bias == "qv"
        assert dim % options.num_heads == 0, f"{dim} channels don't divide by {options.num_heads} heads"
        self.num_heads, self.head_dim = options.num_heads, dim // options.num_heads
        self.stored_grid, self.num_prefix = options.stored_grid, options.num_prefix
        self.qkv = nn.Linear(dim, 3 * dim, bias=options.qkv_bias is True)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if keyless else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if keyless else None
        self.norm = nn.Identity() if options.norm_eps is None else nn.LayerNorm(dim, eps=options.norm_eps)
        self.proj = nn.Linear(dim, dim)

    def survey(self, grid: Grid, tokens: Tensor) -> Surroundings:
        """What attention on this grid needs to know, the same for all blocks of a kind; `tokens` tell its device."""
        return Surroundings(grid)

    def forward(self, tokens: Tensor, around: Surroundings) -> Tensor:
        """tokens: (B, N, C) -> (B, N, C)."""
        q, k, v = self._heads(tokens)
        mixed = self.mix(q, k, v, around).transpose(1, 2).flatten(2)  # (B, N, C)
        del q, k, v  # the largest tensors of a block, where no backward pass keeps them
        out: Tensor = self.proj(self.norm(mixed))
        return out

    def _heads(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """tokens: (B, N, C) -> q, k, v: (B, heads, N, d)."""
        qkv = torch.unflatten(self._project(tokens), -1, (3, self.num_heads, self.head_dim))  # (B, N, 3, heads, d)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def weights(self, tokens: Tensor, around: Surroundings) -> Tensor:
        """tokens: (B, N, C) -> (B, heads, N, N): how much each token takes of each, since that is what unit vectors mix
        to."""
        q, k, _ = self._heads(tokens)
        units = torch.eye(q.shape[2], dtype=q.dtype, device=q.device).expand(*q.shape[:2], -1, -1)
        return self.mix(q, k, units, around)

    def _project(self, tokens: Tensor) -> Tensor:
        if self.q_bias is None or self.v_bias is None:
            out: Tensor = self.qkv(tokens)
            return out
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(tokens, self.qkv.weight, bias)

    def values(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N, C) -> (B, N, C): what `forward` gives where every token attends to itself alone."""
        out: Tensor = self.proj(self.norm(self._project(tokens).chunk(3, dim=-1)[2]))
        return out

    def mix(self, q: Tensor, k: Tensor, v: Tensor, around: Surroundings) -> Tensor:
        """q, k, v: (B, heads, N, d) -> (B, heads, N, d)."""
        return attend(q, k, v, around.visible)

    def joined(self, around: Surroundings, guests: int) -> Surroundings:
        """The surroundings where so many tokens without a place come before all others."""
        assert type(self).mix is Attention.mix, "tables are made for the tokens of a backbone"
        return around


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """q, k, v: (B, heads, N, d) -> (B, heads, N, d); the first G attend to what is `visible`, (B, 1, G, N) bool."""
    if visible is None:
        return F.scaled_dot_product_attention(q, k, v)
    first, others = torch.split(q, [visible.shape[-2], q.shape[-2] - visible.shape[-2]], dim=-2)
    seen = F.scaled_dot_product_attention(first, k, v, attn_mask=visible)
    return torch.cat([seen, F.scaled_dot_product_attention(others, k, v)], dim=-2)


class CausalAttention(Attention):
    """A token attends to itself and to those before it, as in text towers."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, around: Surroundings) -> Tensor:
        """q, k, v: (B, heads, N, d) -> (B, heads, N, d)."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class MaskedAttention(Attention):
    """A token attends to those that a mask lets it see, the first of the tables of its surroundings."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, around: Surroundings) -> Tensor:
        """q, k, v: (B, heads, N, d), the mask bool, to be broadcast to (B, heads, N, N) -> (B, heads, N, d)."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=around.tables[0])


class TableAttention(Attention):
    """A learned bias for each offset of two cells (BEiT, https://arxiv.org/abs/2106.08254), next to a class token."""

    def __init__(self, options: AttentionOptions) -> None:
        super().__init__(options)
        assert options.num_prefix == 1, "the table has rows for the cells and one class token"
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * self.stored_grid - 1) ** 2 + 3, self.num_heads)
        )

    def survey(self, grid: Grid, tokens: Tensor) -> Surroundings:
        """The table's row for every pair of tokens."""
        return Surroundings(grid, (relation_index(grid, device=tokens.device),))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, around: Surroundings) -> Tensor:
        """q, k, v: (B, heads, N, d) -> (B, heads, N, d)."""
        table = resize_relations(self.relative_position_bias_table, self.stored_grid, around.grid)
        bias = table.mT[:, around.tables[0]]  # (heads, N, N)
        return masked_attention(q, k, v, bias[None])


class DecomposedAttention(Attention):
    """A bias from each query to each row and column of cells (MViTv2, SAM: https://arxiv.org/abs/2304.02643)."""

    def __init__(self, options: AttentionOptions) -> None:
        super().__init__(options)
        assert options.num_prefix == 0, "rows and columns are those of cells"
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * self.stored_grid - 1, self.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * self.stored_grid - 1, self.head_dim))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, around: Surroundings) -> Tensor:
        """q, k, v: (B, heads, N, d) -> (B, heads, N, d)."""
        return masked_attention(q, k, v, decomposed_bias(q, self.rel_pos_h, self.rel_pos_w, around.grid))


class RotaryAttention(Attention):
    """Queries and keys turned by where they are; see `layers/rotary.py` for the two ways of saying where."""

    kind: Rotary
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __init__(self, options: AttentionOptions) -> None:
        super().__init__(options)
        self.periods = options.rope_periods

    def survey(self, grid: Grid, tokens: Tensor) -> Surroundings:
        """Cosines and sines of the angles, (N, d) each."""
        tables = rotary_tables(
            self.kind,
            self.head_dim,
            grid[-2:],
            stored_grid=self.stored_grid,
            num_prefix=self.num_prefix,
            like=tokens,
            periods=self.periods,
        )
        if len(grid) == 3:  # at every time the angles are those of the place
            first, second = (
                torch.cat([each[: self.num_prefix], each[self.num_prefix :].repeat(grid[0], 1)]) for each in tables
            )
            tables = (first, second)
        return Surroundings(grid, tables)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, around: Surroundings) -> Tensor:
        """q, k, v: (B, heads, N, d) -> (B, heads, N, d)."""
        cosines, sines = around.tables
        q, k = type(self).rotate(q, cosines, sines), type(self).rotate(k, cosines, sines)
        return attend(q, k, v, around.visible)

    def joined(self, around: Surroundings, guests: int) -> Surroundings:
        """Tokens without a place are not turned."""
        cosines, sines = around.tables
        still = (0, 0, guests, 0)
        return around._replace(tables=(F.pad(cosines, still, value=1.0), F.pad(sines, still)))


class IndexRotaryAttention(RotaryAttention):
    """Angles from counted cells, pairs of neighbouring channels (EVA-02)."""

    kind = "index"
    rotate = staticmethod(rotate_neighbours)


class UnitRotaryAttention(RotaryAttention):
    """Angles from centres in -1..1, pairs half a head apart (DINOv3)."""

    kind = "unit"
    rotate = staticmethod(rotate_halves)


class AxialRotaryAttention(RotaryAttention):
    """Angles from counted cells, an equal share of a head's channels for each axis (V-JEPA 2)."""

    rotate = staticmethod(rotate_neighbours)

    def survey(self, grid: Grid, tokens: Tensor) -> Surroundings:
        """Cosines and sines of the angles, (N, d) each."""
        return Surroundings(grid, axial_tables(self.head_dim, grid, num_prefix=self.num_prefix, like=tokens))


class FactorisedDotProduct(Attention):
    """Half of the heads see the times of their place, half the places of their time (ViViT's model 4)."""

    def __init__(self, options: AttentionOptions) -> None:
        super().__init__(options)
        assert options.num_prefix == 0, "a token before the patches has neither place nor time"
        assert options.num_heads % 2 == 0, f"{options.num_heads} heads don't divide into halves"

    def mix(self, q: Tensor, k: Tensor, v: Tensor, around: Surroundings) -> Tensor:
        """q, k, v: (B, heads, t * h * w, d) -> (B, heads, t * h * w, d)."""
        times, rows, columns = around.grid
        split = [
            torch.unflatten(each, 2, (times, rows * columns)).chunk(2, dim=1) for each in (q, k, v)
        ]  # (B, heads / 2, t, s, d)
        half = self.num_heads // 2
        q, k, v = (first.transpose(2, 3).flatten(1, 2) for first, _ in split)  # (B, heads / 2 * s, t, d)
        over_time = torch.unflatten(F.scaled_dot_product_attention(q, k, v), 1, (half, rows * columns))
        q, k, v = (second.flatten(1, 2) for _, second in split)  # (B, heads / 2 * t, s, d)
        over_space = torch.unflatten(F.scaled_dot_product_attention(q, k, v), 1, (half, times))
        return torch.cat([over_time.transpose(2, 3), over_space], dim=1).flatten(2, 3)  # (B, heads, t * s, d)


ATTENTIONS: dict[Attending, type[Attention]] = {
    "none": Attention,
    "causal": CausalAttention,
    "masked": MaskedAttention,
    "table": TableAttention,
    "decomposed": DecomposedAttention,
    "rope_index": IndexRotaryAttention,
    "rope_unit": UnitRotaryAttention,
    "rope_axes": AxialRotaryAttention,
    "dot_product": FactorisedDotProduct,
}

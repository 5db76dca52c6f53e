"""Attention within shifted windows, holding nothing that depends on sizes (Swin, https://arxiv.org/abs/2103.14030)."""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.layers.eager import is_bare, piece_rows, precision_of, runs_eagerly
from vitdense.layers.gathered import Weights, Windows, gathered_attention
from vitdense.layers.looks import Look, WindowLook
from vitdense.layers.masked import masked_attention
from vitdense.layers.tiles import Shift, Tiling, merge, partition, pieces_of

WindowOrder = Literal["pad_roll", "roll_pad"]

# What published Swins add to the logits of pairs that only the cyclic shift brought together: not -inf.
MASKED = -100.0


def relative_positions(window: int, device: torch.device) -> Tensor:
    """(window**2 * window**2,): the row of the bias table for every pair of places in a window."""
    place = torch.arange(window, device=device)
    apart = place[:, None] - place[None, :] + window - 1
    pairs = apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]
    return pairs.reshape(-1)  # (window**4,)


def shift_masks(window: int, shift: Shift, device: torch.device) -> Tensor:
    """(4, window**2, window**2) of 0 and MASKED: for windows inside, last in their row, in the last row, and both."""
    place = torch.arange(window, device=device)
    wrapped = [place >= window - step if step else torch.zeros_like(place, dtype=torch.bool) for step in shift]
    rows = wrapped[0][:, None].expand(window, window).reshape(-1)
    columns = wrapped[1][None, :].expand(window, window).reshape(-1)
    across_rows = rows[:, None] != rows[None, :]
    across_columns = columns[:, None] != columns[None, :]
    parted = torch.stack([torch.zeros_like(across_rows), across_columns, across_rows, across_rows | across_columns])
    return torch.zeros(parted.shape, device=device).masked_fill(parted, MASKED)


def bias_of_offsets(table: Tensor, window: int) -> Tensor:
    """table: ((2 window - 1)**2, heads), a bias for each offset -> (heads, N, N), for each pair of places."""
    # What is made while a graph is traced, or next to a fake tensor, must not outlive it.
    index = (_kept_positions if runs_eagerly(table) else relative_positions)(window, table.device)
    return torch.unflatten(F.embedding(index, table).mT, -1, (window**2, window**2)).contiguous()


@lru_cache(maxsize=64)
def _kept_positions(window: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return relative_positions(window, device)


@lru_cache(maxsize=64)
def _kept_masks(window: int, shift: Shift, device: torch.device, kind: torch.dtype) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return shift_masks(window, shift, device).to(kind)


class ShiftedWindows(nn.Module, ABC):
    """Self-attention in `window` x `window` tiles, shifted by `shift`; subclasses say what adds to the logits.

    A side of the map that one window covers is not shifted, unless `always_shift`. Logits are products times `scale`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window: int,
        shift: int,
        order: WindowOrder,
        always_shift: bool,
        scale: float,
        bias: bool,
    ) -> None:
        super().__init__()
        assert dim % num_heads == 0, f"{dim} channels don't divide by {num_heads} heads"
        self.num_heads, self.window, self.shift, self.scale = num_heads, window, shift, scale
        self.roll_first, self.always_shift = order == "roll_pad", always_shift
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    @abstractmethod
    def position_bias(self, like: Tensor) -> Tensor:
        """(heads, N, N): what is added to the logits of every pair of places in a window."""

    def qkv_bias(self) -> Tensor | None:
        """(3C,), if there is one."""
        return self.qkv.bias

    def project(self, windows: Tensor) -> Tensor:
        """windows: (..., C) -> (..., 3C): queries, keys and values."""
        out: Tensor = self.qkv(windows)
        return out

    def factors(self) -> Tensor | None:
        """(heads, 1), for `prepare`; None where there is nothing to prepare."""
        return None

    @staticmethod
    def prepare(qkv: Tensor, factors: Tensor) -> Tensor:
        """qkv: (windows, N, 3, heads, d) -> the same, as the products need them."""
        return qkv

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, H, W, C) -> (B, H, W, C)."""
        gathered = self.gathered(maps)
        return self._cut(maps) if gathered is None else gathered

    def gathered(self, maps: Tensor, norm: nn.LayerNorm | None = None, *, residual: bool = False) -> Tensor | None:
        """As `forward`, of normed maps if there is a norm, in the lean way; None where that isn't open."""
        learned = (*self.parameters(), *(norm.parameters() if norm is not None else ()))
        if not is_bare(nn.Linear, self.qkv, self.proj) or not runs_eagerly(maps, *learned):
            return None
        precision = precision_of(maps, *learned)
        if precision is None:
            return None
        (batch, height, width, channels), kind = maps.shape, precision.product
        tiling = self._tiling(height, width)
        backward = torch.is_grad_enabled() and any(each.requires_grad for each in (maps, *learned))
        rows = piece_rows(kind, maps.device, backward=backward)
        masks = _kept_masks(self.window, tiling.shift, maps.device, kind) if tiling.shift != (0, 0) else None
        windows = Windows(
            pieces_of(tiling, batch, height, width, rows, maps.device),
            masks,
            self.num_heads,
            self.scale,
            precision,
            self.prepare,
            0.0 if norm is None else norm.eps,
            residual,
        )
        bias = self.qkv_bias()
        weights = Weights(
            qkv=self.qkv.weight.to(kind),
            qkv_bias=None if bias is None else bias.to(kind),
            proj=self.proj.weight.to(kind),
            proj_bias=self.proj.bias.to(kind),
            bias=self.position_bias(maps).to(kind),
            factors=self.factors(),
            gain=None if norm is None else norm.weight,
            shift=None if norm is None else norm.bias,
        )
        return gathered_attention(windows, maps.reshape(-1, channels), weights).view(maps.shape)

    def _tiling(self, height: int, width: int) -> Tiling:
        moved = [self.always_shift or side > self.window for side in (height, width)]
        shift = (self.shift if moved[0] else 0, self.shift if moved[1] else 0)
        return Tiling(self.window, shift, self.roll_first)

    def _cut(self, maps: Tensor) -> Tensor:
        """`forward` in torch's own operations: the map is padded, rolled and cut."""
        batch, height, width, _ = maps.shape
        tiling = self._tiling(height, width)
        maps = tiling.lay_out(maps)
        size = (maps.shape[1], maps.shape[2])
        windows = self._attend(partition(maps, self.window), batch, size, tiling)
        return tiling.take_back(merge(windows, self.window, *size), height, width)

    def look(self, maps: Tensor) -> Look:
        """maps: (B, H, W, C) -> what `forward` attends to."""
        batch, height, width, _ = maps.shape
        tiling = self._tiling(height, width)
        laid_out = tiling.lay_out(maps)
        windows = partition(laid_out, self.window)
        weights = self._mix(windows, batch, (laid_out.shape[1], laid_out.shape[2]), tiling, units=True)
        return WindowLook(weights, tiling, (height, width))

    def _attend(self, windows: Tensor, batch: int, size: tuple[int, int], tiling: Tiling) -> Tensor:
        """windows: (B * windows, N, C) -> (B * windows, N, C)."""
        mixed = self._mix(windows, batch, size, tiling)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))  # (B * windows, N, C)
        return out

    def _mix(
        self, windows: Tensor, batch: int, size: tuple[int, int], tiling: Tiling, *, units: bool = False
    ) -> Tensor:
        """windows: (B * windows, N, C) -> (B * windows, heads, N, d); unit vectors in place of values mix to the
        attention itself, (B * windows, heads, N, N)."""
        qkv = torch.unflatten(self.project(windows), -1, (3, self.num_heads, -1))  # (B * windows, N, 3, heads, d)
        factors = self.factors()
        qkv = qkv if factors is None else self.prepare(qkv, factors)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B * windows, heads, N, d) each
        if units:
            v = torch.eye(q.shape[2], dtype=q.dtype, device=q.device).expand(*q.shape[:2], -1, -1)
        bias = self.position_bias(windows).to(q.dtype)[None]  # (1, heads, N, N)
        if tiling.shift == (0, 0):
            return masked_attention(q, k, v, bias, scale=self.scale)
        masks = shift_masks(self.window, tiling.shift, q.device).to(q.dtype)
        masked = (bias + masks[:, None]).index_select(0, tiling.kinds(*size, q.device))
        # Windows stand beside the heads, so that one bias serves the whole batch.
        q, k, v = (torch.unflatten(each, 0, (batch, -1)).flatten(1, 2) for each in (q, k, v))
        mixed = masked_attention(q, k, v, masked.flatten(0, 1)[None], scale=self.scale)
        return torch.unflatten(mixed, 1, (-1, self.num_heads)).flatten(0, 1)  # (B * windows, heads, N, d)


class WindowAttention(ShiftedWindows):
    """Attention in shifted windows with a learned bias for each offset of two places."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window: int,
        shift: int,
        qkv_bias: bool = True,
        order: WindowOrder = "pad_roll",
        always_shift: bool = False,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            window=window,
            shift=shift,
            order=order,
            always_shift=always_shift,
            scale=(dim // num_heads) ** -0.5,
            bias=qkv_bias,
        )
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self, like: Tensor) -> Tensor:
        """(heads, N, N), by way of the table."""
        return bias_of_offsets(self.relative_position_bias_table, self.window)


def normed_window_attention(
    maps: Tensor, norm: nn.LayerNorm, attn: WindowAttention, *, residual: bool = False
) -> Tensor:
    """maps: (B, H, W, C) -> attn(norm(maps)), plus the maps where `residual`, with less copying and memory."""
    bare = is_bare(WindowAttention, attn) and is_bare(nn.LayerNorm, norm) and norm.bias is not None
    gathered = attn.gathered(maps, norm, residual=residual) if bare else None
    if gathered is not None:
        return gathered
    out: Tensor = attn(norm(maps))
    return maps + out if residual else out

"""Attention within shifted windows, holding nothing that depends on sizes (Swin, https://arxiv.org/abs/2103.14030)."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.layers.embed import crop_rows_and_columns, pad_rows_and_columns

WindowOrder = Literal["pad_roll", "roll_pad"]

# What published Swins add to the logits of pairs that only the cyclic shift brought together: not -inf.
MASKED = -100.0


def partition(maps: Tensor, window: int) -> Tensor:
    """maps: (B, H, W, C), H and W divisible by `window` -> (B * windows, window**2, C), windows row by row."""
    batch, height, width, channels = maps.shape
    tiles = maps.view(batch, height // window, window, width // window, window, channels)
    return tiles.transpose(2, 3).reshape(-1, window * window, channels)  # (B * windows, window**2, C)


def merge(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """windows: (B * windows, window**2, C) -> (B, height, width, C): the inverse of `partition`."""
    rows, columns, channels = height // window, width // window, windows.shape[-1]
    tiles = windows.view(-1, rows, columns, window, window, channels)
    return tiles.transpose(2, 3).reshape(-1, height, width, channels)  # (B, H, W, C)


def relative_positions(window: int, device: torch.device) -> Tensor:
    """(window**2 * window**2,): the row of the bias table for every pair of places in a window."""
    place = torch.arange(window, device=device)
    apart = place[:, None] - place[None, :] + window - 1
    pairs = apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]
    return pairs.reshape(-1)  # (window**4,)


def shift_masks(window: int, shift: tuple[int, int], device: torch.device) -> Tensor:
    """(4, window**2, window**2) of 0 and MASKED: for windows inside, last in their row, in the last row, and both."""
    place = torch.arange(window, device=device)
    wrapped = [place >= window - step if step else torch.zeros_like(place, dtype=torch.bool) for step in shift]
    rows = wrapped[0][:, None].expand(window, window).reshape(-1)
    columns = wrapped[1][None, :].expand(window, window).reshape(-1)
    across_rows = rows[:, None] != rows[None, :]
    across_columns = columns[:, None] != columns[None, :]
    parted = torch.stack([torch.zeros_like(across_rows), across_columns, across_rows, across_rows | across_columns])
    return torch.zeros(parted.shape, device=device).masked_fill(parted, MASKED)


@lru_cache(maxsize=64)
def _kept_positions(window: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return relative_positions(window, device)


@lru_cache(maxsize=64)
def _kept_masks(window: int, shift: tuple[int, int], device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return shift_masks(window, shift, device)


def _may_keep(tensor: Tensor) -> bool:
    # What is made while a graph is traced, or next to a fake tensor, must not outlive it.
    return type(tensor) is Tensor and not torch.compiler.is_compiling()


class WindowAttention(nn.Module):
    """Self-attention in `window` x `window` tiles, shifted by `shift`, with a learned bias for each offset."""

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
        super().__init__()
        assert dim % num_heads == 0, f"{dim} channels don't divide by {num_heads} heads"
        self.num_heads = num_heads
        self.window = window
        self.shift = shift
        self.roll_first = order == "roll_pad"
        self.always_shift = always_shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, H, W, C) -> (B, H, W, C)."""
        height, width = maps.shape[1:3]
        shift = self._shift_for(height, width)
        if self.roll_first:
            maps = pad_rows_and_columns(_roll(maps, shift, -1), self.window, channels_last=True)
        else:
            maps = _roll(pad_rows_and_columns(maps, self.window, channels_last=True), shift, -1)
        padded_height, padded_width = maps.shape[1:3]
        windows = self._attend(partition(maps, self.window), padded_height, padded_width, shift)
        maps = merge(windows, self.window, padded_height, padded_width)
        if self.roll_first:
            return _roll(crop_rows_and_columns(maps, height, width), shift, 1)
        return crop_rows_and_columns(_roll(maps, shift, 1), height, width)

    def _shift_for(self, height: int, width: int) -> tuple[int, int]:
        if self.shift == 0 or self.always_shift:
            return self.shift, self.shift
        return self.shift if height > self.window else 0, self.shift if width > self.window else 0

    def _attend(self, windows: Tensor, height: int, width: int, shift: tuple[int, int]) -> Tensor:
        """windows: (B * windows, N, C) -> (B * windows, N, C)."""
        qkv = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1))  # (B * windows, N, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B * windows, heads, N, d) each
        bias = self._bias(q, height, width, shift)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))  # (B * windows, N, C)
        return out

    def _bias(self, q: Tensor, height: int, width: int, shift: tuple[int, int]) -> Tensor:
        """(1, heads, N, N), or one for each window, (B * windows, heads, N, N), where the map is shifted."""
        keep = _may_keep(q)
        index = (_kept_positions if keep else relative_positions)(self.window, q.device)
        area = self.window**2
        bias = self.relative_position_bias_table[index].view(1, area, area, -1).permute(0, 3, 1, 2).to(q.dtype)
        if shift == (0, 0):
            return bias
        masks = (_kept_masks if keep else shift_masks)(self.window, shift, q.device)
        rows, columns = height // self.window, width // self.window
        last_row = torch.arange(rows, device=q.device) == rows - 1
        last_column = torch.arange(columns, device=q.device) == columns - 1
        kind = (2 * last_row.long()[:, None] + last_column.long()[None, :]).reshape(-1)
        masked = bias + masks.to(q.dtype)[:, None]  # (4, heads, N, N)
        return masked.index_select(0, kind.repeat(q.shape[0] // (rows * columns)))


def _roll(maps: Tensor, shift: tuple[int, int], sign: int) -> Tensor:
    return maps if shift == (0, 0) else maps.roll((sign * shift[0], sign * shift[1]), (1, 2))

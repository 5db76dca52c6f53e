"""Attention over the times of maps and vectors that were made frame by frame."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from vitdense.layers.attention import AttentionOptions, AxialRotaryAttention

_HEAD = 32


class TemporalMixer(nn.Module):
    """`depth` residual layers of attention, each place to its own times; they start as the identity.

    Times are told by rotary positions, so that any number of them will do.
    """

    def __init__(self, channels: int, *, depth: int, norm_eps: float = 1e-6) -> None:
        super().__init__()
        heads = next(n for n in range(max(channels // _HEAD, 1), 0, -1) if channels % n == 0)
        options = AttentionOptions(dim=channels, num_heads=heads)
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=norm_eps) for _ in range(depth))
        self.layers = nn.ModuleList(AxialRotaryAttention(options) for _ in range(depth))
        for layer in cast(Iterable[AxialRotaryAttention], self.layers):
            nn.init.zeros_(layer.proj.weight)
            nn.init.zeros_(layer.proj.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, T, ...), places behind the times or none -> the same shape."""
        moved = maps.movedim((1, 2), (-1, -2))  # (B, ..., T, C)
        rows = moved.reshape(-1, maps.shape[2], maps.shape[1])  # (places, T, C)
        layers = cast(Iterable[AxialRotaryAttention], self.layers)
        for norm, layer in zip(self.norms, layers, strict=True):
            rows = rows + layer(norm(rows), layer.survey((maps.shape[2],), rows))
        return torch.movedim(rows.reshape(moved.shape), (-1, -2), (1, 2))

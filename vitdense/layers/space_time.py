"""Blocks that attend over time and over space one after the other: divided and factorised attention.

TimeSformer (https://arxiv.org/abs/2102.05095) and ViViT's model 3 (https://arxiv.org/abs/2103.15691).
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vitdense.layers.attention import Attention, Surroundings
from vitdense.layers.block import Block, BlockOptions, WindowedBlock
from vitdense.layers.position import Grid


class FactorisedBlock(Block):
    """Each place attends to its times, then each time to its places, then the MLP (ViViT's model 3).

    Tokens before the patches take part in space alone: every time sees a copy of them, and the copies' mean goes on.
    """

    def __init__(self, options: BlockOptions) -> None:
        super().__init__(options)
        dim = options.attention.dim
        self.num_prefix = options.attention.num_prefix
        self.temporal_norm1 = nn.LayerNorm(dim, eps=options.norm_eps)
        self.temporal_attn = Attention(replace(options.attention, num_prefix=0))
        self.temporal_fc: nn.Module = nn.Identity()

    def forward(self, tokens: Tensor, around: Surroundings) -> Tensor:
        """tokens: (B, P + t * h * w, C) -> (B, P + t * h * w, C)."""
        prefix, patches = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        patches = patches + self.drop_path(self._over_time(patches, around.grid))
        return super().forward(torch.cat([prefix, patches], dim=1) if self.num_prefix else patches, around)

    def _over_time(self, patches: Tensor, grid: Grid) -> Tensor:
        """patches: (B, t * h * w, C) -> (B, t * h * w, C), each place mixed over its times."""
        (batch, *_), (times, rows, columns) = patches.shape, grid
        normed = torch.unflatten(self.temporal_norm1(patches), 1, (times, rows * columns))  # (B, t, h * w, C)
        along = normed.transpose(1, 2).flatten(0, 1)  # (B * h * w, t, C)
        mixed: Tensor = self.temporal_fc(self.temporal_attn(along, Surroundings((times,))))
        return torch.unflatten(mixed, 0, (batch, rows * columns)).transpose(1, 2).flatten(1, 2)  # (B, t * h * w, C)

    def attend(self, tokens: Tensor, around: Surroundings) -> Tensor:
        """tokens: (B, P + t * h * w, C), normed -> (B, P + t * h * w, C), each time mixed over its places."""
        times, rows, columns = around.grid
        batch, count = tokens.shape[0], self.num_prefix
        frames = torch.unflatten(tokens[:, count:], 1, (times, rows * columns))  # (B, t, h * w, C)
        if count:
            copies = tokens[:, None, :count].expand(-1, times, -1, -1)
            frames = torch.cat([copies, frames], dim=2)  # (B, t, P + h * w, C)
        mixed = super().attend(frames.flatten(0, 1), Surroundings((rows, columns), around.tables))
        mixed = torch.unflatten(mixed, 0, (batch, times))  # (B, t, P + h * w, C)
        patches = mixed[:, :, count:].flatten(1, 2)  # (B, t * h * w, C)
        return torch.cat([mixed[:, :, :count].mean(dim=1), patches], dim=1) if count else patches

    def unmixed(self, tokens: Tensor) -> Tensor:
        """tokens: (B, P + t * h * w, C) -> the same shape, where every token attends to itself alone."""
        prefix, patches = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        patches = patches + self.temporal_fc(self.temporal_attn.values(self.temporal_norm1(patches)))
        return super().unmixed(torch.cat([prefix, patches], dim=1))

    def survey(self, grid: Grid, tokens: Tensor) -> Surroundings:
        """The tables are those of one time, the grid is the clip's."""
        return Surroundings(grid, super().survey(grid[1:], tokens).tables)


class WindowedFactorisedBlock(FactorisedBlock, WindowedBlock):
    """As `FactorisedBlock`, within windows of places."""


class DividedBlock(FactorisedBlock):
    """As `FactorisedBlock`, with one more linear layer behind the attention over time (TimeSformer)."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__(options)
        self.temporal_fc = nn.Linear(options.attention.dim, options.attention.dim)


class WindowedDividedBlock(DividedBlock, WindowedBlock):
    """As `DividedBlock`, within windows of places."""

"""Adapters of pictures' maps on maps with a time axis: each time is a picture of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitdense.contracts import Adapter, Level
from vitdense.errors import UserError


class OverFrames(Adapter):
    """An adapter of pictures on the maps of clips or volumes, which keep their times."""

    def __init__(self, adapter: Adapter, time_stride: int) -> None:
        super().__init__()
        self.adapter = adapter
        self.levels = tuple(Level(level.channels, level.stride, time_stride) for level in adapter.levels)

    def forward(self, maps: list[Tensor], images: Tensor) -> list[Tensor]:
        """maps: (B, C_i, T', h_i, w_i), images: clips (B, C, T, H, W) -> (B, C, T', h, w) for each of `levels`."""
        batch, times = maps[0].shape[0], maps[0].shape[2]
        frames = [each.transpose(1, 2).flatten(0, 1) for each in maps]  # (B * T', C_i, h_i, w_i)
        # Of the pictures an adapter of maps reads the size alone.
        adapted: list[Tensor] = self.adapter(frames, images[:, :, 0])
        return [torch.unflatten(each, 0, (batch, times)).transpose(1, 2) for each in adapted]


def over_frames(adapter: Adapter, levels: Sequence[Level]) -> Adapter:
    """The adapter itself for maps of pictures, and frame by frame for those of clips; UserError where times differ."""
    strides = {level.time_stride for level in levels}
    if strides == {None}:
        return adapter
    stride = strides.pop()
    if strides or stride is None:
        found = [level.time_stride for level in levels]
        raise UserError(f"an adapter needs maps of one stride in time, and these have {found}")
    return OverFrames(adapter, stride)

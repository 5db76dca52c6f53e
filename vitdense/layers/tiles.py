"""A map cut into square windows and put together again."""

from torch import Tensor


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

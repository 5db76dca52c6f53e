"""A map cut into square windows and put together again, as copies of the map or as lists of its cells."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from vitdense.layers.embed import crop_rows_and_columns, pad_rows_and_columns

Shift = tuple[int, int]


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


@dataclass(frozen=True)
class Tiling:
    """How a map is padded, rolled against `shift` and cut; published Swins pad first, timm's roll first."""

    window: int
    shift: Shift
    roll_first: bool = False

    def lay_out(self, maps: Tensor) -> Tensor:
        """maps: (B, H, W, C) -> zeros at the right and bottom, and what `shift` cuts off carried to the other side."""
        if self.roll_first:
            return pad_rows_and_columns(_roll(maps, self.shift, -1), self.window, channels_last=True)
        return _roll(pad_rows_and_columns(maps, self.window, channels_last=True), self.shift, -1)

    def take_back(self, maps: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `lay_out` -> (B, height, width, C)."""
        if self.roll_first:
            return _roll(crop_rows_and_columns(maps, height, width), self.shift, 1)
        return crop_rows_and_columns(_roll(maps, self.shift, 1), height, width)

    def kinds(self, height: int, width: int, device: torch.device) -> Tensor:
        """(windows,): which of `shift_masks` holds in each window of a laid-out map."""
        rows, columns = height // self.window, width // self.window
        last_row = torch.arange(rows, device=device) == rows - 1
        last_column = torch.arange(columns, device=device) == columns - 1
        return (2 * last_row.long()[:, None] + last_column.long()[None, :]).reshape(-1)


def _roll(maps: Tensor, shift: Shift, sign: int) -> Tensor:
    return maps if shift == (0, 0) else maps.roll((sign * shift[0], sign * shift[1]), (1, 2))


@dataclass(frozen=True)
class Piece:
    """Some windows of a batch of maps: `cells` are their rows of (B * H * W, C), window by window.

    Where a window reaches beyond the map, `slots` says which of `cells` stands at each of its places, the first also at
    those beyond, which are `empty`; `places` is the way back. `runs` are (kind, first, last + 1) of windows.
    """

    cells: Tensor
    runs: tuple[tuple[int, int, int], ...]
    slots: Tensor | None = None
    places: Tensor | None = None
    empty: Tensor | None = None


@lru_cache(maxsize=64)
def pieces_of(
    tiling: Tiling, batch: int, height: int, width: int, rows: int | None, device: torch.device
) -> tuple[Piece, ...]:
    """All windows of (batch, height, width, C) in pieces of about `rows` places, whole windows of a kind together."""
    with torch.inference_mode(False), torch.no_grad():
        numbers = torch.arange(1, height * width + 1, device="cpu").view(
            1, height, width, 1
        )  # zeros will be what is padded
        laid_out = tiling.lay_out(numbers.view(1, height, width, 1))
        windows = partition(laid_out, tiling.window)[..., 0]  # (windows, window**2)
        down, across = laid_out.shape[1:3]
        kinds = tiling.kinds(down, across, windows.device) if tiling.shift != (0, 0) else windows.new_zeros(1)
        kinds = kinds.expand(len(windows))
        order = torch.argsort(2 * kinds + (windows == 0).any(1), stable=True).repeat_interleave(batch)
        offsets = (torch.arange(batch, device="cpu") * height * width).repeat(len(windows))[:, None]
        windows, kinds = windows[order], kinds[order]
        windows = torch.where(windows == 0, 0, windows + offsets)
        count = 1 if rows is None else max(1, round(windows.numel() / rows))
        edges = [len(windows) * i // count for i in range(count + 1)]
        return tuple(_piece(windows[a:b], kinds[a:b].tolist(), device) for a, b in pairwise(edges) if a < b)


def _piece(windows: Tensor, kinds: list[int], device: torch.device) -> Piece:
    """windows: (windows, window**2), the number of a cell plus one, or zero beyond the map."""
    numbers = windows.reshape(-1)
    inside = numbers > 0
    cells = (numbers[inside] - 1).to(device)
    starts = [0, *(i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]), len(kinds)]
    runs = tuple((kinds[a], a, b) for a, b in pairwise(starts))
    if inside.all():
        return Piece(cells, runs)
    slots = torch.where(inside, inside.cumsum(0) - 1, 0)
    places, empty = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]
    return Piece(cells, runs, slots.to(device), places.to(device), empty.to(device))

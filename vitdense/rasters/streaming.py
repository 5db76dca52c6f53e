"""The walk over a raster: windows are read, looked at and summed, and bands leave when no window reaches them any more.

Windows, their weights and the order in which they are summed are those of `inference/dense.py`, so that the numbers are
what a picture in memory would give.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitdense.data.rasters import Area
from vitdense.inference.blending import Blend, Canvas, blend_weights
from vitdense.rasters.plan import Plan

Look = Callable[[Tensor], Tensor]
"""Windows (B, C, h, w) on the CPU -> their output by pixel (B, K, h, w), on the device that they are summed on."""


class Pictures(Protocol):
    """What is walked over: a `Source`, or anything that reads windows."""

    def read(self, area: Area, /) -> tuple[Tensor, NDArray[np.bool_]]:
        """Pixels (C, h, w), and which of them are missing, (h, w)."""


@dataclass(frozen=True)
class Band:
    """Finished rows of a strip, from (top, left) on: maps (1, K, h, w), None where every window was empty, and missing
    (h, w). They hold only until the next band is asked for."""

    number: int
    top: int
    left: int
    maps: Tensor | None
    missing: NDArray[np.bool_]


@dataclass
class Walk:
    """Bands of a plan, in its order. `advance` is told of each window; `skipped` counts those that held nothing.

    Windows are looked at `together` at a time, of one row and strip, so that what is summed doesn't depend on where a
    walk began.
    """

    look: Look
    pictures: Pictures
    plan: Plan
    blend: Blend = "gaussian"
    together: int = 4
    device: torch.device | str = "cpu"
    advance: Callable[[int], None] = lambda count: None
    skipped: int = field(default=0, init=False)

    def bands(self, finished: int = 0) -> Iterator[Band]:
        """Those after the first `finished` ones."""
        weights = blend_weights(self.blend, self.plan.window).to(self.device)
        for strip, begin, first in self.plan.steps(finished):
            left, end = self.plan.strips[strip]
            size = (self.plan.window[0], end - left)
            canvas = Canvas(size, weights, (self.plan.tops[first], left))
            missing = np.ones(size, bool)
            for row in range(begin, len(self.plan.tops)):
                skipped = self.skipped
                self._sum_row(strip, row, canvas, missing)
                if row < first:
                    self.skipped = skipped  # was counted with its band
                    continue
                top, bottom = self.plan.rows(row)
                rows = bottom - top
                number = strip * len(self.plan.tops) + row
                yield Band(number, top, left, canvas.mean(rows), missing[:rows])
                canvas.move_down(rows)
                missing[: size[0] - rows] = missing[rows:].copy()
                missing[size[0] - rows :] = True

    def _sum_row(self, strip: int, row: int, canvas: Canvas, missing: NDArray[np.bool_]) -> None:
        """Add one row of windows; those that hold nothing are passed over."""
        top, (height, width) = self.plan.tops[row], self.plan.window
        places: list[tuple[int, int]] = []
        pixels: list[Tensor] = []
        for left in self.plan.across(strip):
            images, empty = self.pictures.read(Area(top, left, height, width))
            own, theirs = canvas.shared((top, left))
            missing[own] = empty[theirs]
            if empty.all():
                self.skipped += 1
                self.advance(1)
                continue
            places.append((top, left))
            pixels.append(images)
            if len(places) == self.together:
                self._sum(places, pixels, canvas)
        self._sum(places, pixels, canvas)

    def _sum(self, places: list[tuple[int, int]], pixels: list[Tensor], canvas: Canvas) -> None:
        """Look at the windows that wait."""
        if not places:
            return
        for place, maps in zip(places, self.look(torch.stack(pixels)).chunk(len(places)), strict=True):
            canvas.add(maps, place)
        self.advance(len(places))
        places.clear()
        pixels.clear()

"""Depth as PNGs of millimetres."""

from collections.abc import Callable

import numpy as np
from PIL import Image
from torch import Tensor

from vitdense import pictures
from vitdense.writing.writer import Pixels, Shot, Writer


class DepthWriter(Writer):
    """depth/NAME.png holds millimetres (H, W) in 16 bits, 0 where unknown."""

    kind = "depth"

    def write(self, shot: Shot, found: Tensor) -> None:
        """found: (H, W) metres."""
        pictures.save_depth_png(found.float(), self.place(self.kind, shot.target, ".png"))

    def draw(self, image: Pixels, found: Tensor) -> Image.Image:
        """Picture and prediction side by side, above a scale."""
        return pictures.depth_panel(image, None, found.float())

    def painter(self) -> Callable[[Pixels, Tensor], Pixels]:
        """Each frame beside its depth (H, 2 W, 3), in colours that the first frame's depth is spread over."""
        scale: tuple[float, float] | None = None

        def paint(image: Pixels, found: Tensor) -> Pixels:
            nonlocal scale
            metres = found.float().numpy()
            scale = scale or pictures.depth_range(metres)
            return np.concatenate([image, pictures.colour_depth(metres, *scale)], axis=1)

        return paint

"""Classes of pixels as palette PNGs."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitdense import pictures
from vitdense.writing.writer import Pixels, Shot, Writer


class MaskWriter(Writer):
    """masks/NAME.png holds class indices (H, W)."""

    kind = "masks"

    def write(self, shot: Shot, found: Tensor) -> None:
        """found: (H, W) class indices."""
        pictures.save_palette_png(found.to(torch.int16), self.model.palette, self.place(self.kind, shot.target, ".png"))

    def draw(self, image: Pixels, found: Tensor) -> Image.Image:
        """Picture and prediction side by side, above a legend."""
        return pictures.panel(image, None, found.to(torch.int16), self.model.classes, self.model.palette)

    def painter(self) -> Callable[[Pixels, Tensor], Pixels]:
        """The mask over each frame, without a legend."""
        return lambda image, found: np.asarray(pictures.overlay(image, found.to(torch.int16), self.model.palette))

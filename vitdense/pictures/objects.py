"""Objects of a video over its frames: colours that stay the same, and the backdrop as it is."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vitdense.errors import UserError
from vitdense.pictures.masks import Palette, as_mask, outlines
from vitdense.pictures.sheets import as_picture

_TINT = 0.5


def draw_objects(image: Image.Image | ArrayLike, mask: ArrayLike, palette: Palette) -> NDArray[np.uint8]:
    """image: (H, W, 3) uint8, mask: (H, W) with 0 for the backdrop -> (H, W, 3), objects tinted in their colours and
    outlined in white."""
    picture, labels = as_picture(image), as_mask(mask)
    if picture.shape[:2] != labels.shape:
        raise UserError(f"the mask is {labels.shape} and the picture {picture.shape[:2]} (H, W)")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(palette):
        raise UserError(f"the mask holds {labels.min()}..{labels.max()}, but the palette has {len(palette)} colours")
    drawn = picture.astype(np.float32)
    inside = labels > 0
    drawn[inside] += _TINT * (np.asarray(palette, np.float32)[labels[inside]] - drawn[inside])
    drawn[outlines(labels)] = 255
    return np.rint(drawn).astype(np.uint8)

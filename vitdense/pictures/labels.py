"""Pictures with a strip that says of which class they are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from vitdense.pictures.sheets import as_picture

_DARK, _LIGHT, _BAR = (24, 28, 33), (255, 255, 255), (58, 130, 214)


def draw_classes(image: Image.Image | ArrayLike, names: Sequence[str], scores: Sequence[float]) -> NDArray[np.uint8]:
    """image: (H, W, 3) uint8 and its likeliest classes with scores in 0..1 -> (H, W, 3) with a line for each, and a bar
    as long as its score."""
    picture = Image.fromarray(as_picture(image))
    width, height = picture.size
    line = min(max(10, round(min(width, height) / 14)), max(height // max(len(names), 1), 1))
    font = ImageFont.load_default(max(line - 3, 6))
    strip = Image.new("RGB", (width, min(line * len(names), height)), _DARK)
    draw = ImageDraw.Draw(strip)
    for row, (name, score) in enumerate(zip(names, scores, strict=True)):
        top = row * line
        draw.rectangle((0, top + 1, round(score * (width - 1)), top + line - 2), fill=_BAR)
        draw.text((3, top + line // 2), f"{name} {score:.2f}", _LIGHT, font, anchor="lm")
    pixels = np.array(picture)
    shown = pixels[: strip.height].astype(np.float32)
    pixels[: strip.height] = np.rint(shown + 0.75 * (np.asarray(strip, np.float32) - shown)).astype(np.uint8)
    return pixels

"""Matrices of counts as coloured cells: what a class was taken for."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from vitdense.errors import UserError
from vitdense.pictures.sheets import GAP, INK, MARGIN, MUTED, PAPER, ROW_HEIGHT, SWATCH, TEXT_SIZE

_SHARES = (0.0, 0.15, 0.5, 1.0)
_RAMP = np.array([(247, 249, 252), (198, 219, 239), (86, 148, 205), (11, 61, 122)], np.float64)
_SMALL = 13
_SCALE = 220
_SPLIT = 4
"""Pixels between the classes and the background."""


def confusion_matrix(
    counts: ArrayLike, names: Sequence[str], *, title: str, background: str = "background"
) -> Image.Image:
    """counts: (K + 1, K + 1) of true and predicted classes, the last being the background -> the share of each row.

    Cells that are large enough hold their counts.
    """
    numbers = np.asarray(counts, np.int64)
    labels = [*names, background]
    if numbers.shape != (len(labels), len(labels)):
        raise UserError(f"the counts are {numbers.shape}, for {len(names)} classes and the background")
    side = 52 if len(labels) <= 16 else 40 if len(labels) <= 26 else 18
    font = ImageFont.load_default(TEXT_SIZE if side > 18 else _SMALL)
    longest = max(math.ceil(font.getlength(label)) for label in labels)
    left = MARGIN + ROW_HEIGHT + longest + 10
    top = MARGIN + 2 * ROW_HEIGHT + longest + 10
    extent = len(labels) * side + _SPLIT
    heading = ImageFont.load_default(TEXT_SIZE + 3)
    width = max(left + max(extent, _SCALE + 80) + MARGIN, math.ceil(heading.getlength(title)) + 2 * MARGIN)
    canvas = Image.new("RGB", (width, top + extent + GAP + SWATCH + ROW_HEIGHT + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, INK, heading, anchor="lm")
    _draw_labels(canvas, labels, (left, top), side, font)
    _draw_cells(draw, numbers, (left, top), side)
    _draw_scale(canvas, (left, top + extent + GAP))
    return canvas


def _place(index: int, size: int, side: int) -> int:
    """Where a row or column begins: the background stands apart."""
    return index * side + (_SPLIT if index == size - 1 else 0)


def _draw_cells(draw: ImageDraw.ImageDraw, counts: NDArray[np.int64], corner: tuple[int, int], side: int) -> None:
    size = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = _colours(shares)
    font = ImageFont.load_default(_SMALL)
    for row in range(size):
        for column in range(size):
            x, y = corner[0] + _place(column, size, side), corner[1] + _place(row, size, side)
            red, green, blue = colours[row, column].tolist()
            draw.rectangle((x, y, x + side - 2, y + side - 2), (red, green, blue))
            if side > 18 and counts[row, column]:
                ink = PAPER if shares[row, column] > 0.4 else INK
                text = _short(int(counts[row, column]))
                draw.text((x + side / 2 - 1, y + side / 2 - 1), text, ink, font, anchor="mm")


def _draw_labels(
    canvas: Image.Image,
    labels: Sequence[str],
    corner: tuple[int, int],
    side: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    draw, size = ImageDraw.Draw(canvas), len(labels)
    left, top = corner
    small = ImageFont.load_default(_SMALL)
    for index, label in enumerate(labels):
        middle = _place(index, size, side) + side // 2 - 1
        ink = MUTED if index == size - 1 else INK
        draw.text((left - 10, top + middle), label, ink, font, anchor="rm")
        name = _turned(label, ink, font)
        canvas.paste(name, (left + middle - name.width // 2, top - 10 - name.height))
    draw.text((left, MARGIN + ROW_HEIGHT), "predicted", MUTED, small, anchor="lm")
    name = _turned("true", MUTED, small)
    canvas.paste(name, (MARGIN, top))


def _turned(text: str, ink: tuple[int, int, int], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """A text that reads upwards, as wide as a line is high whatever its letters."""
    height = math.ceil(font.getbbox("Ag")[3])
    image = Image.new("RGB", (math.ceil(font.getlength(text)), height), PAPER)
    ImageDraw.Draw(image).text((0, height / 2), text, ink, font, anchor="lm")
    return image.transpose(Image.Transpose.ROTATE_90)


def _draw_scale(canvas: Image.Image, corner: tuple[int, int]) -> None:
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_SMALL)
    left, top = corner
    ramp = _colours(np.linspace(0, 1, _SCALE))[None]  # (1, W, 3)
    canvas.paste(Image.fromarray(np.repeat(ramp, SWATCH, axis=0)), corner)
    for part, anchor in ((0.0, "lt"), (0.5, "mt"), (1.0, "rt")):
        draw.text((left + part * _SCALE, top + SWATCH + 6), f"{part:.0%}", MUTED, font, anchor=anchor)
    draw.text((left + _SCALE + 14, top + SWATCH / 2), "of a row", MUTED, font, anchor="lm")


def _colours(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Shares in 0..1 -> colours, with a further axis."""
    channels = [np.interp(shares, _SHARES, _RAMP[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _short(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"

"""What all pictures share: tiles with titles side by side, sheets of panels, and the hatch of what is not known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from vitdense.errors import UserError

Pixels = NDArray[np.uint8]

INK, MUTED, PAPER = (31, 35, 40), (101, 109, 118), (255, 255, 255)
IGNORED_LIGHT, IGNORED_DARK = (226, 228, 232), (168, 173, 180)
TILE_WIDTH = 560
MARGIN, GAP, TITLE_HEIGHT, TEXT_SIZE, ROW_HEIGHT, SWATCH = 28, 16, 34, 17, 28, 16


@dataclass(frozen=True)
class Tile:
    """A picture of TILE_WIDTH with a title and a note above it."""

    title: str
    note: str
    picture: Image.Image


def place_tiles(tiles: Sequence[Tile], legend: int) -> tuple[Image.Image, int]:
    """Tiles side by side on a canvas with room for a legend below; and the row that the legend begins at."""
    font = ImageFont.load_default(TEXT_SIZE)
    height = max(tile.picture.height for tile in tiles)
    top = MARGIN // 2 + TITLE_HEIGHT
    size = (2 * MARGIN + width_of(len(tiles)), top + height + GAP + legend + MARGIN // 2)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, tile in enumerate(tiles):
        left = MARGIN + index * (TILE_WIDTH + GAP)
        draw.text((left, top - 12), tile.title, INK, font, anchor="ls")
        draw.text((left + TILE_WIDTH, top - 12), tile.note, MUTED, font, anchor="rs")
        canvas.paste(tile.picture, (left, top))
    return canvas, top + height + GAP


def width_of(tiles: int) -> int:
    """Pixels from the left of the first tile to the right of the last."""
    return tiles * TILE_WIDTH + (tiles - 1) * GAP


def contact_sheet(panels: Sequence[Image.Image], *, columns: int = 1) -> Image.Image:
    """Panels in rows of `columns`, each in a cell of the largest one's size."""
    if not panels:
        raise UserError("a contact sheet needs a panel or more")
    width, height = max(p.width for p in panels), max(p.height for p in panels)
    columns = min(columns, len(panels))
    sheet = Image.new("RGB", (width * columns, height * math.ceil(len(panels) / columns)), PAPER)
    for index, item in enumerate(panels):
        sheet.paste(item, (index % columns * width, index // columns * height))
    return sheet


def as_picture(image: Image.Image | ArrayLike) -> Pixels:
    """A PIL image or an array (H, W, 3) of uint8 -> that array."""
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise UserError(f"a picture must be (H, W, 3) in uint8, got {pixels.shape} in {pixels.dtype}")
    return pixels


def hatch(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(H, W, 3): grey diagonal stripes, for what is not known."""
    rows, columns = np.indices(shape[:2])
    stripes = (rows + columns) // 6 % 2
    striped: NDArray[np.float32] = np.asarray([IGNORED_LIGHT, IGNORED_DARK], dtype=np.float32)[stripes]
    return striped


def enlarge(pixels: NDArray[np.generic], resample: Image.Resampling = Image.Resampling.LANCZOS) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) -> the same at the width of a tile."""
    height, width = pixels.shape[:2]
    size = (TILE_WIDTH, max(round(height * TILE_WIDTH / width), 1))
    return np.asarray(Image.fromarray(pixels).resize(size, resample))

"""Things laid over pictures: a box, a name and, where there are some, a mask for each; and panels beside the truth."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from vitdense.contracts import Detections, Target
from vitdense.pictures.sheets import MARGIN, TILE_WIDTH, Pixels, Tile, as_picture, enlarge, place_tiles

Palette = Sequence[tuple[int, int, int]]

SHOWN_FROM = 0.3
"""Things with a lower score are left out of pictures: they are in the files."""
_TINT = 0.45
_DARK, _LIGHT = (31, 35, 40), (255, 255, 255)


def draw_things(
    image: Image.Image | ArrayLike, found: Detections, classes: Sequence[str], palette: Palette
) -> Image.Image:
    """image: (H, W, 3) uint8, and things in its pixels -> it with each thing's mask, box and name, the best on top.

    Names carry the score, unless all scores are 1, as of a truth.
    """
    pixels = as_picture(image)
    boxes, labels, scores = (np.asarray(part) for part in (found.boxes, found.labels, found.scores))
    colours = [palette[label] for label in labels.tolist()]
    if found.masks is not None:
        pixels = _tint(pixels, np.asarray(found.masks), colours)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    size = max(11, round(min(picture.size) / 36))
    font, line = ImageFont.load_default(size), max(2, round(min(picture.size) / 240))
    sure = bool((scores == 1).all())
    for index in reversed(range(len(boxes))):
        x0, y0, x1, y1 = boxes[index].tolist()
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=colours[index], width=line)
    for index in reversed(range(len(boxes))):
        name = classes[labels[index]] + ("" if sure else f" {scores[index]:.2f}")
        _name(draw, name, (boxes[index][0], boxes[index][1]), colours[index], font)
    return picture


def things_panel(
    image: Image.Image | ArrayLike,
    truth: Target | None,
    found: Detections,
    classes: Sequence[str],
    palette: Palette,
) -> Image.Image:
    """Truth (where there is one) and what was found with a score of SHOWN_FROM or more, side by side."""
    picture = as_picture(image)
    tiles = []
    if truth is not None:
        known = as_detections(truth)
        tiles.append(Tile("truth", f"{len(known)} things", _tile(picture, known, classes, palette)))
    shown = found[found.scores >= SHOWN_FROM]
    note = f"{len(shown)} of {len(found)} with a score of {SHOWN_FROM} or more"
    tiles.append(Tile("found", note, _tile(picture, shown, classes, palette)))
    canvas, _ = place_tiles(tiles, MARGIN // 2)
    return canvas


def draw_likely(image: Pixels, found: Detections, classes: Sequence[str], palette: Palette) -> Image.Image:
    """image: (H, W, 3) -> it with what was found with a score of SHOWN_FROM or more."""
    return draw_things(image, found[found.scores >= SHOWN_FROM], classes, palette)


def as_detections(truth: Target) -> Detections:
    """A truth as if it had been found, with scores of 1."""
    boxes, labels = truth["boxes"], truth["labels"]
    return Detections(boxes, boxes.new_ones(len(labels)), labels, truth.get("masks"))


def _tile(picture: Pixels, things: Detections, classes: Sequence[str], palette: Palette) -> Image.Image:
    """At the width of a tile; lines and names are drawn after enlarging, so that they stay fine."""
    scale = TILE_WIDTH / picture.shape[1]
    large = enlarge(picture)
    masks = None
    if things.masks is not None:
        shape = (large.shape[1], large.shape[0])
        resized = [Image.fromarray(np.asarray(mask)).resize(shape, Image.Resampling.NEAREST) for mask in things.masks]
        masks = things.masks.new_tensor(np.array(resized, bool).reshape(-1, *large.shape[:2]))
    enlarged = Detections(things.boxes * scale, things.scores, things.labels, masks)
    return draw_things(large, enlarged, classes, palette)


def _tint(pixels: Pixels, masks: NDArray[np.bool_], colours: Palette) -> Pixels:
    """Masks (N, H, W) in their colours over (H, W, 3), the first on top."""
    tinted = pixels.astype(np.float32)
    for mask, colour in zip(masks[::-1], list(colours)[::-1], strict=True):
        tinted[mask] += _TINT * (np.asarray(colour, np.float32) - tinted[mask])
    return tinted.round().astype(np.uint8)


def _name(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A label above the box's corner; inside where there is no room, and moved to stay in the picture."""
    width, height = font.getlength(text) + 6, font.getbbox("Ag")[3] + 3
    left = min(max(corner[0], 0), max(draw.im.size[0] - width, 0))
    top = corner[1] - height if corner[1] >= height else max(corner[1], 0)
    draw.rectangle((left, top, left + width, top + height), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((left + 3, top + height / 2), text, _DARK if bright else _LIGHT, font, anchor="lm")

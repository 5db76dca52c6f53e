"""Masks laid over pictures, panels that compare truth and prediction, and masks as files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from vitdense.contracts import IGNORE
from vitdense.errors import UserError
from vitdense.pictures.sheets import (
    IGNORED_LIGHT,
    INK,
    MARGIN,
    ROW_HEIGHT,
    SWATCH,
    TEXT_SIZE,
    Pixels,
    Tile,
    as_picture,
    enlarge,
    hatch,
    place_tiles,
    width_of,
)

Palette = Sequence[tuple[int, int, int]]
Mask = NDArray[np.int32]

MOST_IN_LEGEND = 40


def make_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Colours that stay apart for any number of classes: each is the farthest, in OKLab, from all before it."""
    hues = np.linspace(0.5, 0.5 + 2 * math.pi, max(48, math.ceil(num_classes / 8)), endpoint=False)
    grid = np.stack(np.meshgrid((0.70, 0.60, 0.50, 0.80), (0.15, 0.09), hues, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, chroma, hue = grid.T
    places = np.stack([0.7 * lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)  # (N, 3)
    chosen, distance = [0], np.full(len(grid), np.inf)
    while len(chosen) < num_classes:
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return tuple(_from_oklch(*grid[index].tolist()) for index in chosen[:num_classes])


def overlay(
    image: Image.Image | ArrayLike,
    mask: ArrayLike,
    palette: Palette,
    *,
    segments: ArrayLike | None = None,
    alpha: float = 0.62,
) -> Image.Image:
    """The picture (H, W, 3) in grey under the mask's (H, W) colours, outlined in white; ignored pixels are hatched.

    segments: (H, W) ids of what is outlined instead of classes.
    """
    picture, labels = as_picture(image), as_mask(mask)
    _check(picture, labels, palette)
    grey = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float32)[..., None]  # (H, W, 1)
    colours = np.asarray([*palette, IGNORED_LIGHT], dtype=np.float32)
    fill = colours[labels]  # (H, W, 3); IGNORE, -1, picks the last row
    fill[labels == IGNORE] = hatch(labels.shape)[labels == IGNORE]
    blended = grey + (fill - grey) * alpha
    edge = outlines(labels if segments is None else segments)
    blended[edge] += (255 - blended[edge]) * 0.8
    return Image.fromarray(np.rint(blended).astype(np.uint8))


def outlines(mask: ArrayLike) -> NDArray[np.bool_]:
    """(H, W): pixels whose right or lower neighbour is of another class, so that a line is one pixel wide."""
    labels = as_mask(mask)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edge[:-1] |= labels[1:] != labels[:-1]
    return edge


def panel(
    image: Image.Image | ArrayLike,
    truth: ArrayLike | None,
    prediction: ArrayLike,
    classes: Sequence[str],
    palette: Palette,
    *,
    before: Image.Image | ArrayLike | None = None,
    segments: ArrayLike | None = None,
) -> Image.Image:
    """Picture, truth (where there is one) and prediction side by side, above a legend of the classes that occur; of a
    pair the picture `before` as well.

    segments: (H, W) ids of what is outlined in the prediction instead of classes.
    """
    picture, guess = as_picture(image), as_mask(prediction)
    tiles = [Tile("picture" if before is None else "after", "", Image.fromarray(enlarge(picture)))]
    if before is not None:
        tiles.insert(0, Tile("before", "", Image.fromarray(enlarge(as_picture(before)))))
    labels = None if truth is None else as_mask(truth)
    if labels is not None:
        tiles.append(Tile("truth", "", _tile(picture, labels, palette)))
    tiles.append(Tile("prediction", _accuracy(labels, guess), _tile(picture, guess, palette, segments)))
    present = np.unique(guess if labels is None else np.concatenate([labels.ravel(), guess.ravel()]))
    entries = [(classes[index], palette[index]) for index in present.tolist() if index != IGNORE]
    return _lay_out(tiles, entries, ignored=bool((present == IGNORE).any()))


def save_palette_png(mask: ArrayLike, palette: Palette, path: str | Path) -> None:
    """Class indices as a PNG: with colours up to 255 classes (ignored is 255), else 16 bits (ignored is 65535)."""
    labels = as_mask(mask)
    _check_palette(labels, palette)
    if len(palette) > 255:
        Image.fromarray(np.where(labels == IGNORE, 65535, labels).astype(np.uint16)).save(path)
        return
    picture = Image.fromarray(np.where(labels == IGNORE, 255, labels).astype(np.uint8), mode="P")
    unused = [(0, 0, 0)] * (255 - len(palette))
    picture.putpalette([part for colour in (*palette, *unused, IGNORED_LIGHT) for part in colour])
    picture.save(path, optimize=True)


def as_mask(mask: ArrayLike) -> Mask:
    """An array, or a tensor on the CPU, (H, W) of class indices -> an array of int32."""
    labels = np.asarray(mask)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise UserError(f"a mask must be (H, W) class indices, got {labels.shape} in {labels.dtype}")
    return labels.astype(np.int32, copy=False)


def _check(picture: Pixels, labels: Mask, palette: Palette) -> None:
    if picture.shape[:2] != labels.shape:
        raise UserError(f"the mask is {labels.shape} and the picture {picture.shape[:2]} (H, W)")
    _check_palette(labels, palette)


def _check_palette(labels: Mask, palette: Palette) -> None:
    if labels.size and not IGNORE <= labels.min() <= labels.max() < len(palette):
        raise UserError(f"the mask holds {labels.min()}..{labels.max()}, but the palette has {len(palette)} colours")


def _accuracy(truth: Mask | None, prediction: Mask) -> str:
    if truth is None or not (truth != IGNORE).any():
        return ""
    labelled = truth != IGNORE
    return f"{(truth == prediction)[labelled].mean():.1%} of pixels right"


def _tile(picture: Pixels, labels: Mask, palette: Palette, segments: ArrayLike | None = None) -> Image.Image:
    _check(picture, labels, palette)
    large, nearest = enlarge(picture), Image.Resampling.NEAREST
    ids = None if segments is None else enlarge(as_mask(segments), nearest)
    return overlay(large, enlarge(labels, nearest), palette, segments=ids)


def _lay_out(
    tiles: Sequence[Tile], entries: Sequence[tuple[str, tuple[int, int, int]]], *, ignored: bool
) -> Image.Image:
    """Tiles above a legend; its rows first, since they decide on the height."""
    font = ImageFont.load_default(TEXT_SIZE)
    shown = entries[:MOST_IN_LEGEND]
    names = [name for name, _ in shown] + (["ignored"] if ignored else [])
    if len(entries) > len(shown):
        names.append(f"and {len(entries) - len(shown)} more")
    places = _flow([font.getlength(name) for name in names], width_of(len(tiles)))
    rows = 1 + max((row for _, row in places), default=-1)
    canvas, top = place_tiles(tiles, rows * ROW_HEIGHT)
    draw = ImageDraw.Draw(canvas)
    stripes = Image.fromarray(hatch((SWATCH, SWATCH)).astype(np.uint8))
    for index, (name, (x, row)) in enumerate(zip(names, places, strict=True)):
        left, middle = MARGIN + round(x), top + row * ROW_HEIGHT + ROW_HEIGHT // 2
        box = (left, middle - SWATCH // 2)
        if index < len(shown):
            canvas.paste(shown[index][1], (*box, left + SWATCH, middle + SWATCH // 2))
        elif name == "ignored":
            canvas.paste(stripes, box)
        draw.text((left + SWATCH + 8, middle), name, INK, font, anchor="lm")
    return canvas


def _flow(widths: Sequence[float], available: float) -> list[tuple[float, int]]:
    """(x, row) of legend entries, broken into rows as words in a paragraph."""
    places: list[tuple[float, int]] = []
    x, row = 0.0, 0
    for width in widths:
        needed = SWATCH + 8 + width
        if x > 0 and x + needed > available:
            x, row = 0.0, row + 1
        places.append((x, row))
        x += needed + 24
    return places


def _from_oklch(lightness: float, chroma: float, hue: float) -> tuple[int, int, int]:
    """OKLCH (https://bottosson.github.io/posts/oklab/) to 8-bit sRGB, clipped."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    clipped = [min(max(part, 0.0), 1.0) for part in linear]
    red, green, blue = (12.92 * p if p <= 0.0031308 else 1.055 * p ** (1 / 2.4) - 0.055 for p in clipped)
    return round(red * 255), round(green * 255), round(blue * 255)

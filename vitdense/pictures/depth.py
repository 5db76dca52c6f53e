"""Depth as pictures with a scale in metres, panels that compare it with the truth, and depth as files."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from vitdense.errors import UserError
from vitdense.pictures.sheets import (
    GAP,
    INK,
    MARGIN,
    SWATCH,
    TEXT_SIZE,
    TILE_WIDTH,
    Pixels,
    Tile,
    as_picture,
    enlarge,
    hatch,
    place_tiles,
)

Metres = NDArray[np.float32]

MILLIMETRES = 1000
MOST_ERROR = 0.25
"""The relative error that is drawn darkest: beyond it a pixel no longer counts in d1 (roughly)."""
_DARKEST = np.array((140, 16, 40), np.float32)
_BAR_HEIGHT = SWATCH + 6 + TEXT_SIZE + 6


def depth_panel(image: Image.Image | ArrayLike, truth: ArrayLike | None, prediction: ArrayLike) -> Image.Image:
    """Picture, truth (where there is one), prediction and relative error side by side, above their scales.

    truth: (H, W) metres, 0 where unknown, which is hatched; prediction: (H, W) metres. Near is bright.
    """
    picture, guess = as_picture(image), _as_depth(prediction)
    known = None if truth is None else _as_depth(truth)
    for depth in (guess, guess if known is None else known):
        if depth.shape != picture.shape[:2]:
            raise UserError(f"the depth is {depth.shape} and the picture {picture.shape[:2]} (H, W)")
    low, high = depth_range(guess if known is None or not (known > 0).any() else known)
    tiles = [Tile("picture", "", Image.fromarray(enlarge(picture)))]
    if known is not None:
        tiles.append(Tile("truth", "", _tile(colour_depth(known, low, high))))
    tiles.append(Tile("prediction", "", _tile(colour_depth(guess, low, high))))
    if known is not None:
        error, note = _relative_error(known, guess)
        tiles.append(Tile("relative error", note, _tile(_colour_error(error, known > 0))))
    canvas, top = place_tiles(tiles, _BAR_HEIGHT)
    ramp = np.linspace(0, 1, TILE_WIDTH, dtype=np.float32)[None]  # (1, W)
    step = TILE_WIDTH + GAP
    ticks = [f"{low + (high - low) * part / 4:.2f} m" for part in range(5)]
    _draw_scale(canvas, (MARGIN + step, top), _colours(ramp), ticks)
    if known is not None:
        error_ramp = _colour_error(ramp * MOST_ERROR, np.ones_like(ramp, np.bool_))
        ticks = [f"{100 * MOST_ERROR * part / 5:.0f} %" for part in range(6)]
        _draw_scale(canvas, (MARGIN + 3 * step, top), error_ramp, ticks)
    return canvas


def depth_range(depth: Metres) -> tuple[float, float]:
    """The metres between which nearly all known depth lies: what colours are spread over."""
    values = depth[_known(depth)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (2, 98)))
    return (low, high) if high - low > 1e-3 * max(high, 1.0) else (low * 0.9, low * 1.1 + 1e-3)


def colour_depth(depth: Metres, low: float, high: float) -> Pixels:
    """(H, W) metres -> (H, W, 3): near is bright, far is dark, unknown is hatched."""
    return _hatched(_colours(np.clip((depth - low) / (high - low), 0, 1)), _known(depth))


def save_depth_png(depth: ArrayLike, path: str | Path) -> None:
    """(H, W) metres as a 16-bit PNG in millimetres: at most 65.535 m, 0 where unknown."""
    metres = _as_depth(depth)
    stored = np.rint(np.clip(np.where(_known(metres), metres, 0), 0, 65.535) * MILLIMETRES)
    Image.fromarray(np.where(_known(metres), np.maximum(stored, 1), 0).astype(np.uint16)).save(path)


def _as_depth(depth: ArrayLike) -> Metres:
    metres = np.asarray(depth)
    if metres.ndim != 2 or metres.dtype.kind != "f":
        raise UserError(f"depth must be (H, W) metres as floats, got {metres.shape} in {metres.dtype}")
    return metres.astype(np.float32, copy=False)


def _known(depth: Metres) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(depth) & (depth > 0))


def _colours(place: Metres) -> Pixels:
    """(H, W) from 0, near, to 1, far -> (H, W, 3)."""
    level = np.rint(255 * (1 - np.nan_to_num(place))).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(level, cv2.COLORMAP_MAGMA)[..., ::-1])  # BGR -> RGB


def _relative_error(truth: Metres, prediction: Metres) -> tuple[Metres, str]:
    """(H, W), 0 where the truth is unknown; and its mean as a note."""
    known = truth > 0
    error = np.where(known, np.abs(prediction - truth) / np.where(known, truth, 1), 0).astype(np.float32)
    return error, f"{error[known].mean():.1%} on average" if known.any() else ""


def _colour_error(error: Metres, known: NDArray[np.bool_]) -> Pixels:
    place = np.clip(np.nan_to_num(error / MOST_ERROR, nan=1.0), 0, 1)[..., None]  # (H, W, 1)
    return _hatched(np.rint(255 + (_DARKEST - 255) * place).astype(np.uint8), known)


def _hatched(colours: Pixels, known: NDArray[np.bool_]) -> Pixels:
    return np.where(known[..., None], colours, hatch(known.shape).astype(np.uint8))


def _tile(colours: Pixels) -> Image.Image:
    return Image.fromarray(enlarge(colours, Image.Resampling.NEAREST))


def _draw_scale(canvas: Image.Image, corner: tuple[int, int], ramp: Pixels, ticks: Sequence[str]) -> None:
    """A bar of colours (1, W, 3), with ticks evenly below it."""
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT_SIZE)
    left, top = corner
    canvas.paste(Image.fromarray(np.repeat(ramp, SWATCH, axis=0)), corner)
    for index, text in enumerate(ticks):
        x = left + round(index / (len(ticks) - 1) * (TILE_WIDTH - 1))
        anchor = "lt" if index == 0 else "rt" if index == len(ticks) - 1 else "mt"
        draw.line([(x, top + SWATCH), (x, top + SWATCH + 3)], INK)
        draw.text((x, top + SWATCH + 6), text, INK, font, anchor=anchor)

"""Lines over 0..1 in panels of any number, as curves of precision and recall are drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from vitdense.errors import UserError
from vitdense.pictures.sheets import GAP, IGNORED_DARK, IGNORED_LIGHT, INK, MARGIN, MUTED, PAPER, ROW_HEIGHT, TEXT_SIZE

Colour = tuple[int, int, int]

SMALL_TEXT = 13
_LEFT, _TOP, _RIGHT, _BOTTOM = 44, 34, 14, 48
"""Pixels around a panel's plot, for its ticks, title and the names of the axes."""
_EDGE = 4
"""Pixels from 0 and 1 to the plot's rim, in which lines of these heights have room."""
_FINE = 3
"""Lines are drawn so many times as large and then made smaller, which smooths them."""


@dataclass(frozen=True)
class Panel:
    """A title, a note at its right, and one curve (N,) in 0..1 for each name of the legend, over 0..1 evenly."""

    title: str
    note: str
    curves: Sequence[ArrayLike]


def chart_sheet(
    panels: Sequence[Panel],
    legend: Sequence[tuple[str, Colour]],
    *,
    title: str,
    axes: tuple[str, str],
    columns: int = 4,
    plot: tuple[int, int] = (270, 190),
) -> Image.Image:
    """Panels in rows under a title and a legend; axes: the names of x and y; plot: its width and height in pixels."""
    if not panels:
        raise UserError("a sheet of charts needs a panel or more")
    columns = min(columns, len(panels))
    cell = (plot[0] + _LEFT + _RIGHT, plot[1] + _TOP + _BOTTOM)
    font = ImageFont.load_default(TEXT_SIZE)
    entries = sum(28 + font.getlength(name) + 24 for name, _ in legend)
    width = max(2 * MARGIN + columns * cell[0] + (columns - 1) * GAP, math.ceil(2 * MARGIN + entries))
    top = MARGIN + 2 * ROW_HEIGHT
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new("RGB", (width, top + rows * cell[1] + (rows - 1) * GAP + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, ImageFont.load_default(TEXT_SIZE + 3), anchor="lm")
    x = float(MARGIN)
    for name, colour in legend:
        y = MARGIN + ROW_HEIGHT
        draw.line([(x, y), (x + 20, y)], colour, 4)
        draw.text((x + 28, y), name, INK, font, anchor="lm")
        x += 28 + font.getlength(name) + 24
    colours = [colour for _, colour in legend]
    for index, panel in enumerate(panels):
        place = (
            MARGIN + index % columns * (cell[0] + GAP),
            top + index // columns * (cell[1] + GAP),
        )
        sheet.paste(_draw(panel, colours, axes, plot), place)
    return sheet


def _draw(panel: Panel, colours: Sequence[Colour], axes: tuple[str, str], plot: tuple[int, int]) -> Image.Image:
    width, height = plot
    image = Image.new("RGB", (width + _LEFT + _RIGHT, height + _TOP + _BOTTOM), PAPER)
    image.paste(_lines(panel.curves, colours, plot), (_LEFT, _TOP))
    draw, small = ImageDraw.Draw(image), ImageFont.load_default(SMALL_TEXT)
    font = ImageFont.load_default(TEXT_SIZE)
    room = width - small.getlength(panel.note) - 12
    draw.text((_LEFT, _TOP - 10), _fit(panel.title, font, room), INK, font, anchor="ls")
    draw.text((_LEFT + width, _TOP - 10), panel.note, MUTED, small, anchor="rs")
    for part in (0.0, 0.5, 1.0):
        x = _LEFT + _EDGE + round(part * (width - 2 * _EDGE))
        y = _TOP + _EDGE + round((1 - part) * (height - 2 * _EDGE))
        draw.text((x, _TOP + height + 6), f"{part:g}", MUTED, small, anchor="mt")
        draw.text((_LEFT - 7, y), f"{part:g}", MUTED, small, anchor="rm")
    draw.text((_LEFT + width / 2, _TOP + height + 24), axes[0], MUTED, small, anchor="mt")
    name = _turned(axes[1], small)
    image.paste(name, (4, _TOP + (height - name.height) // 2))
    return image


def _lines(curves: Sequence[ArrayLike], colours: Sequence[Colour], plot: tuple[int, int]) -> Image.Image:
    """The plot's inside: a grid of quarters, and the curves, each thinner than the one before, so that all are seen
    where they lie on each other."""
    width, height, edge = plot[0] * _FINE, plot[1] * _FINE, _EDGE * _FINE
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = edge + part * (width - 2 * edge), edge + part * (height - 2 * edge)
        shade = IGNORED_DARK if part in (0, 1) else IGNORED_LIGHT
        draw.line([(x, edge), (x, height - edge)], shade, _FINE)
        draw.line([(edge, y), (width - edge, y)], shade, _FINE)
    for index, (values, colour) in enumerate(zip(curves, colours, strict=True)):
        heights = np.asarray(values, np.float64)
        along = np.linspace(edge, width - edge, len(heights))
        points = list(zip(along.tolist(), (edge + (1 - heights) * (height - 2 * edge)).tolist(), strict=True))
        draw.line(points, colour, max(6 - 2 * index, 2) * _FINE, joint="curve")
    return image.resize(plot, Image.Resampling.LANCZOS)


def _turned(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """A text that reads upwards."""
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (math.ceil(right - left), math.ceil(bottom - top)), PAPER)
    ImageDraw.Draw(image).text((-left, -top), text, MUTED, font)
    return image.transpose(Image.Transpose.ROTATE_90)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """A text, cut where it needs more than so many pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text.rstrip() + "..."

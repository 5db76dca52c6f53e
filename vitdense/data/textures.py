"""Colours, textures and the layered backdrop of the scenes in `scenes.py`; every draw comes from a given generator."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

COLOURS = {
    "red": (222, 62, 56),
    "orange": (244, 140, 46),
    "yellow": (248, 200, 60),
    "green": (84, 168, 80),
    "teal": (34, 160, 156),
    "blue": (58, 112, 204),
    "purple": (134, 82, 184),
    "pink": (240, 122, 160),
}
CALM = 0.35
"""How strong the textures of the backdrop are, compared to those of things."""

TEXTURES = ("plain", "striped", "dotted", "checked", "wavy")

CREAM = np.array((255, 244, 222), np.float32)
NAVY = np.array((28, 34, 66), np.float32)
HAZE = np.array((226, 234, 244), np.float32)
FAR = 10.0
"""Metres to the sky, the deepest part of a scene."""


@dataclass(frozen=True)
class Fabric:
    """Two colours (3,) in 0..255 in a repeating texture; `period` and offsets in units of the scene's short side."""

    colour: str
    texture: str
    main: Floats
    second: Floats
    period: float
    angle: float


def draw_fabric(rng: np.random.Generator, coarse: float, contrast: float = 1.0) -> Fabric:
    """A random colour and texture: objects and backdrops draw from this one function, so neither gives a class away."""
    colour = tuple(COLOURS)[rng.integers(len(COLOURS))]
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    main = np.asarray(COLOURS[colour], np.float32) * rng.uniform(0.88, 1.06) + rng.normal(0, 5, 3).astype(np.float32)
    strength = contrast * rng.uniform(0.4, 0.75)
    second = main + strength * ((CREAM if rng.random() < 0.62 else NAVY) - main)
    period = coarse * rng.uniform(0.065, 0.12)
    return Fabric(colour, texture, np.clip(main, 0, 255), second.astype(np.float32), period, rng.uniform(0, np.pi))


def in_air(fabric: Fabric, depth: float) -> Fabric:
    """The fabric as it looks from `depth` metres away: the farther, the paler."""
    clear = np.float32(np.exp(-depth / 30))
    return replace(fabric, main=HAZE + clear * (fabric.main - HAZE), second=HAZE + clear * (fabric.second - HAZE))


def weave(fabric: Fabric, x: Floats, y: Floats) -> Floats:
    """The fabric at points x, y, which broadcast to (h, w), in units of the short side -> (3, h, w) in 0..255."""
    main, change = fabric.main[:, None, None], (fabric.second - fabric.main)[:, None, None]
    if fabric.texture == "plain":
        return np.broadcast_to(main, (3, *np.broadcast_shapes(x.shape, y.shape))).copy()
    turn = 2 * np.pi / fabric.period
    cos, sin = np.float32(turn * np.cos(fabric.angle)), np.float32(turn * np.sin(fabric.angle))
    u, v = x * cos + y * sin, y * cos - x * sin
    if fabric.texture == "striped":
        field = np.sin(u) * 3
    elif fabric.texture == "dotted":
        field = (np.cos(u) + np.cos(v) - 0.95) * 3.5
    elif fabric.texture == "checked":
        field = np.sin(u * np.float32(0.6)) * np.sin(v * np.float32(0.6)) * 7
    else:
        field = np.sin(u + np.float32(1.6) * np.sin(v * np.float32(0.5))) * 3
    return np.asarray(main + np.clip(field + 0.5, 0, 1) * change, np.float32)


def centres(first: int, last: int, unit: int) -> Floats:
    """Coordinates of the pixels first..last - 1, in units of the short side: (last - first,)."""
    return np.asarray((np.arange(first, last) + 0.5) / unit, np.float32)


def mottle(rng: np.random.Generator, height: int, width: int, cells: int = 6) -> Floats:
    """(h, w) smooth noise around 1: the unevenness of paper and cloth."""
    grid = rng.normal(1.0, 0.045, (cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC))


def draw_backdrop(rng: np.random.Generator, height: int, width: int) -> tuple[Floats, Floats]:
    """A sky and two or three paper hills, each before the other: picture (3, h, w) in 0..255, depth (h, w) metres."""
    unit = min(height, width)
    y, x = centres(0, height, unit)[:, None], centres(0, width, unit)[None, :]
    fall = np.asarray(y * np.float32(unit / height), np.float32)  # (h, 1), from 0 at the top to 1 at the bottom
    picture = weave(in_air(draw_fabric(rng, 1.6, CALM), FAR), x, y)
    picture *= 1.12 - 0.24 * fall
    depth = np.asarray(np.repeat(FAR - fall, width, 1), np.float32)
    for nearness, level in enumerate(np.sort(rng.uniform(0.25, 0.95, rng.integers(2, 4))), start=1):
        phase, bend = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.02, 0.09, 2)
        crest = (level + bend[0] * np.sin(3 * x + phase[0]) + bend[1] * np.sin(7 * x + phase[1])).astype(np.float32)
        fabric = in_air(draw_fabric(rng, 1.6, CALM), FAR - 1.1 * nearness)
        rows = slice(max(0, int((float(crest.min()) - 0.22) * height)), height)  # a hill needs nothing above its shadow
        _raise_hill(picture[:, rows], depth[rows], fabric, x, y[rows], fall[rows] - crest, nearness, height)
    return picture, depth


def _raise_hill(
    picture: Floats,
    depth: Floats,
    fabric: Fabric,
    x: Floats,
    y: Floats,
    inside: Floats,
    nearness: int,
    height: int,
) -> None:
    """Paint one hill and its shadow in place; `inside` (h, w) is above 0 on the hill."""
    within = np.clip(inside, 0, 1)
    picture *= 1 - np.float32(0.34) * np.exp(np.minimum(inside, 0) * 22)
    hill = weave(fabric, x, y) * (np.float32(1.06) - np.float32(0.3) * within)
    picture += np.clip(inside * height + 0.5, 0, 1) * (hill - picture)
    np.copyto(depth, np.float32(FAR - 1.1 * nearness) - np.float32(1.2) * within, where=inside > 0)

"""Clips of the paper shapes in `scenes.py` that all move together, along a line or once round."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitdense.data.scenes import Size, Thing, both, draw_light, draw_things, grey, hills, paint, photograph

DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")

Course = Literal["line", "round"]

_MARGIN = 0.16  # how far outside the picture, in short sides, a thing leaves before it comes back in at the other side


@dataclass(frozen=True)
class Clip:
    """frames (T, H, W, 3) uint8, semantic (T, H, W) uint8 indexing CLASSES, direction: an index of DIRECTIONS."""

    frames: NDArray[np.uint8]
    semantic: NDArray[np.uint8]
    direction: int


def render_clip(
    seed: int,
    index: int,
    size: Size,
    num_frames: int,
    *,
    stream: int = 0,
    plain: bool = False,
    course: Course = "line",
) -> Clip:
    """Clip `index` of a seed: shapes before hills that stand still, or `plain` grey.

    Along a `line` they drift and turn slowly. `round` they go once about a polygon, clockwise, a side between two
    frames, and the direction is that of the first side: where the number of frames is a multiple of eight, the polygon
    is the same one for every direction, so that frames without their order say nothing of it. Either way each shape
    starts anywhere on a torus somewhat larger than the picture, and moving on a torus keeps that distribution: a single
    frame says nothing.
    """
    rng = np.random.default_rng([seed, stream, index, num_frames])
    height, width = both(size)
    direction = int(rng.integers(len(DIRECTIONS)))
    path = rng.uniform(0.3, 0.6)
    period = width / min(height, width) + 2 * _MARGIN, height / min(height, width) + 2 * _MARGIN
    start = rng.uniform(0, 1, 2) * period
    things, light = draw_things(rng, height, width), draw_light(rng)
    spins = rng.uniform(-0.5, 0.5, len(things)) * (course == "line")
    backdrop, depth, paper = grey(height, width) if plain else hills(rng, height, width)
    kinds = np.array([0] + [thing.kind for thing in things], np.uint8)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    semantic = np.empty((num_frames, height, width), np.uint8)
    places = start + (
        _line(direction, num_frames, path) if course == "line" else _round(direction, num_frames, path / 3 + 0.05)
    )
    for number, (x, y) in enumerate(places):
        time = number / max(1, num_frames - 1)
        moved = [_moved(thing, (x, y), time * spin, period) for thing, spin in zip(things, spins, strict=True)]
        picture, owner, _ = paint(backdrop, depth, moved, light, paper)
        frames[number], semantic[number] = photograph(picture, light, rng), kinds[owner]
    return Clip(frames, semantic, direction)


def _line(direction: int, num_frames: int, length: float) -> NDArray[np.float64]:
    """(T, 2): places x, y along a line of a length in short sides."""
    angle = direction * 2 * np.pi / len(DIRECTIONS)
    times = np.arange(num_frames)[:, None] / max(1, num_frames - 1)
    return np.asarray(times * length * np.array([np.cos(angle), np.sin(angle)]))


def _round(direction: int, num_frames: int, radius: float) -> NDArray[np.float64]:
    """(T, 2): corners x, y of a regular polygon of a radius in short sides."""
    angles = 2 * np.pi * (direction / len(DIRECTIONS) + np.arange(num_frames - 1) / num_frames)
    side = 2 * radius * np.sin(np.pi / max(2, num_frames))
    steps = side * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])


def _moved(thing: Thing, shift: tuple[float, float], turn: float, period: tuple[float, float]) -> Thing:
    """The thing moved on a torus of `period`, whose seam lies outside the picture."""
    x = (thing.x + _MARGIN + shift[0]) % period[0] - _MARGIN
    y = (thing.y + _MARGIN + shift[1]) % period[1] - _MARGIN
    return replace(thing, x=x, y=y, angle=thing.angle + turn)

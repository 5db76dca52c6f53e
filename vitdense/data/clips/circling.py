"""Clips of the paper shapes in `scenes.py` on a round that sets out in one of eight directions."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vitdense.data.scenes import Size, Thing, both, draw_light, draw_things, grey, hills, paint, photograph

DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")

_MARGIN = 0.16  # how far outside the picture, in short sides, a thing leaves before it comes back in at the other side


@dataclass(frozen=True)
class Clip:
    """frames (T, H, W, 3) uint8, semantic (T, H, W) uint8 indexing CLASSES, direction: an index of DIRECTIONS."""

    frames: NDArray[np.uint8]
    semantic: NDArray[np.uint8]
    direction: int


def render_clip(seed: int, index: int, size: Size, num_frames: int, *, stream: int = 0, plain: bool = False) -> Clip:
    """Clip `index` of a seed. All things go one round of a polygon together, clockwise, a side between two frames,
    before hills that stand still or `plain` grey; the direction is that of the first side.

    Each starts anywhere on a torus somewhat larger than the picture, and moving on a torus keeps that distribution: a
    single frame says nothing of the direction. Nor do all frames without their order, where their number is a multiple
    of eight: the polygon is the same one for every direction.
    """
    rng = np.random.default_rng([seed, stream, index, num_frames])
    height, width = both(size)
    direction = int(rng.integers(len(DIRECTIONS)))
    side = 2 * np.sin(np.pi / max(2, num_frames)) * rng.uniform(0.15, 0.25)
    wide, high = width / min(height, width) + 2 * _MARGIN, height / min(height, width) + 2 * _MARGIN
    place = rng.uniform(0, 1, 2) * (wide, high)
    things, light = draw_things(rng, height, width), draw_light(rng)
    backdrop, depth, paper = grey(height, width) if plain else hills(rng, height, width)
    kinds = np.array([0] + [thing.kind for thing in things], np.uint8)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    semantic = np.empty((num_frames, height, width), np.uint8)
    for number in range(num_frames):
        moved = [_moved(thing, (place[0], place[1]), (wide, high)) for thing in things]
        picture, owner, _ = paint(backdrop, depth, moved, light, paper)
        frames[number], semantic[number] = photograph(picture, light, rng), kinds[owner]
        angle = 2 * np.pi * (direction / len(DIRECTIONS) + number / num_frames)
        place = place + side * np.array([np.cos(angle), np.sin(angle)])
    return Clip(frames, semantic, direction)


def _moved(thing: Thing, shift: tuple[float, float], period: tuple[float, float]) -> Thing:
    """The thing moved on a torus of `period`, whose seam lies outside the picture."""
    x = (thing.x + _MARGIN + shift[0]) % period[0] - _MARGIN
    y = (thing.y + _MARGIN + shift[1]) % period[1] - _MARGIN
    return replace(thing, x=x, y=y)

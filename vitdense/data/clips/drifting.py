"""Clips of the paper shapes in `scenes.py` drifting in one of eight directions, which no single frame gives away."""

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
    """Clip `index` of a seed. All things drift together and turn slowly, before hills that stand still or `plain` grey.

    Each starts anywhere on a torus somewhat larger than the picture, whatever the direction, and moving on a torus
    keeps that distribution: a single frame says nothing of the direction.
    """
    rng = np.random.default_rng([seed, stream, index, num_frames])
    height, width = both(size)
    direction = int(rng.integers(len(DIRECTIONS)))
    path = rng.uniform(0.3, 0.6)
    wide, high = width / min(height, width) + 2 * _MARGIN, height / min(height, width) + 2 * _MARGIN
    start = rng.uniform(0, 1, 2) * (wide, high)
    things, light = draw_things(rng, height, width), draw_light(rng)
    spins = rng.uniform(-0.5, 0.5, len(things))
    backdrop, depth, paper = grey(height, width) if plain else hills(rng, height, width)
    kinds = np.array([0] + [thing.kind for thing in things], np.uint8)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    semantic = np.empty((num_frames, height, width), np.uint8)
    for number in range(num_frames):
        time = number / max(1, num_frames - 1)
        angle = direction * np.pi / 4
        shift = start + time * path * np.array([np.cos(angle), np.sin(angle)])
        moved = [
            _drift(thing, (shift[0], shift[1]), time * spin, (wide, high))
            for thing, spin in zip(things, spins, strict=True)
        ]
        picture, owner, _ = paint(backdrop, depth, moved, light, paper)
        frames[number], semantic[number] = photograph(picture, light, rng), kinds[owner]
    return Clip(frames, semantic, direction)


def _drift(thing: Thing, shift: tuple[float, float], turn: float, period: tuple[float, float]) -> Thing:
    """The thing moved on a torus of `period`, whose seam lies outside the picture."""
    x = (thing.x + _MARGIN + shift[0]) % period[0] - _MARGIN
    y = (thing.y + _MARGIN + shift[1]) % period[1] - _MARGIN
    return replace(thing, x=x, y=y, angle=thing.angle + turn)

"""The paper shapes of `scenes.py` photographed twice, some of them gone, new or elsewhere the second time."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vitdense.data.scenes import Light, Size, Thing, both, draw_light, draw_things, hills, paint, photograph, place
from vitdense.data.textures import Floats

FATES = ("stays", "vanishes", "appears", "moves")
SHARES = (0.46, 0.18, 0.18, 0.18)

Numbered = list[tuple[int, Thing]]
"""Things with a number that is the same in both pictures where they have not changed."""


@dataclass(frozen=True)
class Rearranged:
    """before, after (H, W, 3) uint8; changed (H, W) bool: where not the same thing is seen, or the hills."""

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    changed: NDArray[np.bool_]


def render_pair(seed: int, index: int, size: Size, *, stream: int = 0, nuisance: bool = True) -> Rearranged:
    """Pair `index` of a seed. With `nuisance` light, camera, grain and the brightness of the hills differ, which is no
    change; nor are the shadows that things throw on the hills.
    """
    rng = np.random.default_rng([seed, stream, index])
    height, width = both(size)
    earlier, later = _rearrange(draw_things(rng, height, width), rng, height, width)
    light, backdrop = draw_light(rng), hills(rng, height, width)
    other, brightness, grain = (draw_light(rng), rng.uniform(0.8, 1.2), 1) if nuisance else (light, 1.0, 0)
    grains = [np.random.default_rng([seed, stream, index, each]) for each in (0, grain)]
    before, seen = _paint(earlier, backdrop, light, grains[0])
    brighter = (backdrop[0] * np.float32(brightness), *backdrop[1:])
    after, seen_later = _paint(later, brighter, other, grains[1])
    return Rearranged(before, after, seen != seen_later)


def _rearrange(things: list[Thing], rng: np.random.Generator, height: int, width: int) -> tuple[Numbered, Numbered]:
    """What is there before and after, near to far; what moves gets another number, or vanishes for want of a place."""
    earlier: Numbered = []
    later: Numbered = []
    taken = list(things)
    for number, thing in enumerate(things, start=1):
        fate = FATES[rng.choice(len(FATES), p=SHARES)]
        if fate != "appears":
            earlier.append((number, thing))
        if fate in ("stays", "appears"):
            later.append((number, thing))
        moved = place(rng, replace(thing, angle=rng.uniform(0, 2 * np.pi)), taken, height, width)
        if fate == "moves" and moved is not None:
            taken.append(moved)
            later.append((len(things) + number, moved))
    return earlier, later


def _paint(
    things: Numbered, backdrop: tuple[Floats, Floats, Floats], light: Light, grain: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The photograph (H, W, 3), and the number of what is seen (H, W), 0 for the hills."""
    picture, owner, _ = paint(backdrop[0], backdrop[1], [thing for _, thing in things], light, backdrop[2])
    numbers = np.array([0] + [number for number, _ in things])
    return photograph(picture, light, grain), numbers[owner]

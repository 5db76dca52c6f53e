"""What is said of a scene: one full sentence, or one of many shorter phrasings of the same."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

FULL = 0.4
"""How often a phrasing is the full sentence."""


@dataclass(frozen=True)
class Words:
    """The words for one thing, of which any but the last may be empty; x, y and radius in units of the short side."""

    size: str
    texture: str
    colour: str
    kind: str
    x: float
    y: float
    radius: float

    def __str__(self) -> str:
        text = " ".join(word for word in (self.size, self.texture, self.colour, self.kind) if word)
        return f"an {text}" if text[0] in "aeiou" else f"a {text}"


def describe(things: Sequence[Words]) -> str:
    """The nearest thing, and how the second nearest stands to it."""
    if len(things) < 2:
        return str(things[0]) if things else "hills of paper"
    near, far = things[:2]
    across, down = far.x - near.x, far.y - near.y
    if np.hypot(across, down) < near.radius + far.radius:
        return f"{near} in front of {far}"
    if abs(across) > abs(down):
        return f"{near} to the {'left' if across > 0 else 'right'} of {far}"
    return f"{near} {'above' if down > 0 else 'below'} {far}"


def rephrase(things: Sequence[Words], generator: np.random.Generator) -> str:
    """The sentence, or one with fewer things and fewer words for each."""
    if generator.random() < FULL:
        return describe(things)
    told = things[: 2 if generator.random() < 0.6 else 1]
    return describe([_shortened(thing, generator) for thing in told])


def _shortened(thing: Words, generator: np.random.Generator) -> Words:
    """Without size, texture, colour, or with `shape` for the kind: never without both colour and kind."""
    size, texture, names = generator.random(3)
    return replace(
        thing,
        size=thing.size if size < 0.5 else "",
        texture=thing.texture if texture < 0.5 else "",
        colour="" if names > 0.85 else thing.colour,
        kind="shape" if names < 0.15 else thing.kind,
    )

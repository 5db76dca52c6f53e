"""Pictures of paper shapes before paper hills, with every label a task may want, drawn from (seed, index) alone."""

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdense.data.phrases import Words, describe
from vitdense.data.textures import (
    CREAM,
    FAR,
    Fabric,
    Floats,
    centres,
    draw_backdrop,
    draw_fabric,
    in_air,
    mottle,
    weave,
)

CLASSES = ("background", "circle", "square", "triangle", "star", "ring")

Size = int | tuple[int, int]

Backdrop = Literal["hills", "plain"]

_GREY = 110.0
_SUB = 4  # bits of sub-pixel precision in OpenCV's polygons
_RIM = 0.03  # width of the line that makes the rim; half of it lies inside the thing
_SPAN = 1.05  # metres: a shape of this size one metre away would fill the picture's short side


@dataclass(frozen=True)
class Thing:
    """One object: `kind` indexes CLASSES; x, y and radius are in units of the short side, depth in metres."""

    kind: int
    fabric: Fabric
    x: float
    y: float
    radius: float
    angle: float
    aspect: float
    depth: float


@dataclass(frozen=True)
class Light:
    """Where light comes from, and what the camera does: all that is the same over a whole picture or clip."""

    direction: float
    shadow: float
    exposure: float
    gamma: float
    tint: Floats
    vignette: float
    blur: float
    noise: float


@dataclass(frozen=True)
class Scene:
    """One picture (H, W, 3) uint8 and its labels, of N visible objects from near to far.

    semantic (H, W) uint8 indexes CLASSES; instances (N, H, W) bool are the visible parts; labels (N,) int64;
    boxes (N, 4) float32 are xyxy pixels around the visible parts; depth (H, W) float32 in metres; words (N,) name them.
    """

    image: NDArray[np.uint8]
    semantic: NDArray[np.uint8]
    instances: NDArray[np.bool_]
    labels: NDArray[np.int64]
    boxes: Floats
    depth: Floats
    words: tuple[Words, ...]

    @property
    def caption(self) -> str:
        """A sentence on the nearest two."""
        return describe(self.words)


def render(seed: int, index: int, size: Size, *, stream: int = 0, most: int = 5, plain: bool = False) -> Scene:
    """Scene `index` of a seed, at (H, W) or a square, of `most` things or fewer before hills or `plain` grey; `stream`
    tells splits apart: their pictures share no draw."""
    rng = np.random.default_rng([seed, stream, index])
    height, width = both(size)
    things = draw_things(rng, height, width, most=most)
    light = draw_light(rng)
    backdrop, depth, paper = grey(height, width) if plain else hills(rng, height, width)
    picture, owner, depth = paint(backdrop, depth, things, light, paper)
    return _label(photograph(picture, light, rng), owner, depth, things)


def hills(rng: np.random.Generator, height: int, width: int) -> tuple[Floats, Floats, Floats]:
    """Picture (3, h, w), depth (h, w) and the paper's own texture."""
    backdrop, depth = draw_backdrop(rng, height, width)
    return backdrop, depth, mottle(rng, height, width)


def grey(height: int, width: int) -> tuple[Floats, Floats, Floats]:
    """The same of nothing."""
    picture = np.full((3, height, width), _GREY, np.float32)
    return picture, np.full((height, width), FAR, np.float32), np.ones((1, 1, 1), np.float32)


def both(size: Size) -> tuple[int, int]:
    """A side or (H, W) -> (H, W)."""
    return (size, size) if isinstance(size, int) else size


def draw_things(rng: np.random.Generator, height: int, width: int, margin: float = -0.04, most: int = 5) -> list[Thing]:
    """Two to `most` objects (or one), near to far, that may cover each other in part; centres stay `margin` inside the
    picture."""
    things: list[Thing] = []
    for _ in range(int(rng.integers(min(2, most), most + 1))):
        radius = rng.uniform(0.12, 0.26)
        depth = _SPAN * rng.uniform(0.9, 1.1) / (2 * radius)
        thing = Thing(
            kind=int(rng.integers(1, len(CLASSES))),
            fabric=draw_fabric(rng, 0.6 + 2.2 * radius),
            x=0.0,
            y=0.0,
            radius=radius,
            angle=rng.uniform(0, 2 * np.pi),
            aspect=rng.uniform(0.85, 1.18),
            depth=depth,
        )
        placed = place(rng, thing, things, height, width, margin)
        things += [] if placed is None else [placed]
    return sorted(things, key=lambda thing: thing.depth)


def place(
    rng: np.random.Generator, thing: Thing, others: list[Thing], height: int, width: int, margin: float = -0.04
) -> Thing | None:
    """The thing at a random place where it covers others in part at most; None where twelve tries find no such."""
    unit, low = min(height, width), thing.radius * 0.75 + margin
    for across, down in rng.uniform(0, 1, (12, 2)):
        x = low + across * (width / unit - 2 * low)
        y = low + down * (height / unit - 2 * low)
        if all(np.hypot(x - other.x, y - other.y) > 0.72 * (thing.radius + other.radius) for other in others):
            return replace(thing, x=x, y=y)
    return None


def draw_light(rng: np.random.Generator) -> Light:
    """Light from above, from any side; a camera with its faults."""
    return Light(
        direction=rng.uniform(-2.4, -0.75),
        shadow=rng.uniform(0.3, 0.5),
        exposure=rng.uniform(0.98, 1.16),
        gamma=rng.uniform(0.85, 1.15),
        tint=rng.normal(1.0, 0.025, 3).astype(np.float32),
        vignette=rng.uniform(0.05, 0.22),
        blur=max(0.0, rng.uniform(-0.8, 0.65)),
        noise=rng.uniform(0.5, 4.0),
    )


def paint(
    picture: Floats, depth: Floats, things: list[Thing], light: Light, paper: Floats
) -> tuple[Floats, NDArray[np.uint8], Floats]:
    """Put things on a backdrop, far to near: picture (3, h, w) in 0..255, owner (h, w) 1 + index or 0, depth (h, w)."""
    picture, depth = picture * paper, depth.copy()
    owner = np.zeros(depth.shape, np.uint8)
    for number in range(len(things) - 1, -1, -1):
        _paint_thing(picture, owner, depth, things[number], number + 1, light)
    return picture, owner, depth


def photograph(picture: Floats, light: Light, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(3, h, w) in 0..255 -> (h, w, 3), as a camera takes it: vignette, exposure, tint, blur and noise."""
    height, width = picture.shape[1:]
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :] ** 2
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] ** 2
    gain = light.exposure * (1 - light.vignette * 0.5 * (across + down)) / 255
    tint = (light.tint**light.gamma * 255)[:, None, None]
    out = cv2.pow(np.clip(picture * gain, 0, 1), light.gamma) * tint
    if light.blur > 0.15:
        for plane in out:
            cv2.GaussianBlur(plane, (0, 0), light.blur * min(height, width) / 128, dst=plane)
    # Bytes are ten times cheaper than normal draws; their standard deviation is 74.
    grain = np.frombuffer(rng.bytes(4 * height * width), np.int8).reshape(4, height, width)
    grains = grain * np.float32(0.7 * light.noise / 74)
    out += grains[3]
    out += grains[:3]
    return np.ascontiguousarray(np.clip(out, 0, 255).astype(np.uint8).transpose(1, 2, 0))  # (h, w, 3)


def outline(thing: Thing) -> list[NDArray[np.float64]]:
    """The contours (n, 2) of a thing around (0, 0), in units of the short side; a ring's second is its hole."""
    name, turn = CLASSES[thing.kind], 2 * np.pi
    if name in ("circle", "ring"):
        points, reach = np.arange(48) / 48 * turn, np.ones(48)
    elif name == "star":
        points, reach = np.arange(10) / 10 * turn, np.where(np.arange(10) % 2, 0.5, 1.12)
    else:
        sides = {"square": 4, "triangle": 3}[name]
        points, reach = np.arange(sides) / sides * turn, np.full(sides, {4: 1.12, 3: 1.2}[sides])
    flat = np.stack([np.cos(points) * reach * thing.aspect, np.sin(points) * reach / thing.aspect], 1)
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    turned = flat @ np.array([[cos, sin], [-sin, cos]]) * thing.radius
    return [turned, turned * 0.52] if name == "ring" else [turned]


def _paint_thing(
    picture: Floats, owner: NDArray[np.uint8], depth: Floats, thing: Thing, number: int, light: Light
) -> None:
    """Paint one thing and its shadow in place, in the window that they need."""
    height, width = depth.shape
    unit = min(height, width)
    reach = thing.radius * 1.55 * unit + 0.06 * unit
    left, top = max(0, int(thing.x * unit - reach)), max(0, int(thing.y * unit - reach))
    right, bottom = min(width, int(thing.x * unit + reach) + 1), min(height, int(thing.y * unit + reach) + 1)
    if left >= right or top >= bottom:
        return
    shape = (bottom - top, right - left)
    corner = np.array((left + 0.5, top + 0.5))
    centre = np.array((thing.x, thing.y)) * unit - corner
    contours = [np.round((part * unit + centre) * (1 << _SUB)).astype(np.int32) for part in outline(thing)]
    cover = np.zeros(shape, np.uint8)
    cv2.fillPoly(cover, contours, 255, cv2.LINE_AA, _SUB)
    window = (slice(top, bottom), slice(left, right))
    inside = cover >= 128
    gap = float(np.clip((FAR - thing.depth) / FAR, 0.2, 1))
    soft = np.float32(1 / 255) * np.asarray(cv2.GaussianBlur(cover, (0, 0), (0.008 + 0.016 * gap) * unit), np.float32)
    x = centres(left, right, unit)[None, :] - np.float32(thing.x)
    y = centres(top, bottom, unit)[:, None] - np.float32(thing.y)
    rim = np.zeros(shape, np.uint8)
    cv2.polylines(rim, contours, True, 255, max(1, round(_RIM * unit)), cv2.LINE_AA, _SUB)
    colour = _lit(thing, x, y, soft, rim, light, unit)
    away = -light.shadow * _shifted(soft, light.direction + np.pi, (0.012 + 0.03 * gap) * unit)
    canvas = picture[:, window[0], window[1]]
    canvas *= 1 + away
    canvas += cover * np.float32(1 / 255) * (colour - canvas)
    owner[window][inside] = number
    depth[window][inside] = thing.depth


def _lit(thing: Thing, x: Floats, y: Floats, soft: Floats, rim: NDArray[np.uint8], light: Light, unit: int) -> Floats:
    """The thing's fabric with a paper rim, under the light: brighter towards it, and bevelled."""
    cos, sin = np.float32(np.cos(light.direction)), np.float32(np.sin(light.direction))
    along = (x * cos + y * sin) * np.float32(0.16 / thing.radius)
    step = 0.008 * unit
    bevel = _shifted(soft, light.direction + np.pi, step) - _shifted(soft, light.direction, step)
    c, s = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    colour = weave(in_air(thing.fabric, thing.depth), x * c + y * s, y * c - x * s)
    colour += rim * np.float32(1 / 255) * (CREAM[:, None, None] - colour)
    return np.asarray(colour * (1 + along + np.float32(0.55) * np.clip(bevel, -0.5, 0.5)), np.float32)


def _shifted(field: Floats, direction: float, distance: float) -> Floats:
    """(h, w) moved towards `direction`."""
    right, down = float(np.cos(direction) * distance), float(np.sin(direction) * distance)
    move = np.array([[1, 0, right], [0, 1, down]], np.float32)
    return np.asarray(cv2.warpAffine(field, move, field.shape[::-1], borderMode=cv2.BORDER_REPLICATE))


def _label(image: NDArray[np.uint8], owner: NDArray[np.uint8], depth: Floats, things: list[Thing]) -> Scene:
    seen = [number for number in range(len(things)) if (owner == number + 1).any()]
    kinds = np.array([0] + [thing.kind for thing in things], np.uint8)
    instances = np.stack([owner == number + 1 for number in seen]) if seen else np.zeros((0, *owner.shape), np.bool_)
    boxes = [cv2.boundingRect(mask.astype(np.uint8)) for mask in instances]
    return Scene(
        image=image,
        semantic=kinds[owner],
        instances=instances,
        labels=kinds[1:][seen].astype(np.int64),
        boxes=np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float32).reshape(-1, 4),
        depth=depth,
        words=tuple(_named(things[number]) for number in seen),
    )


def _named(thing: Thing) -> Words:
    size = "large" if thing.radius > 0.215 else "small" if thing.radius < 0.16 else ""
    fabric, kind = thing.fabric, CLASSES[thing.kind]
    return Words(size, fabric.texture, fabric.colour, kind, thing.x, thing.y, thing.radius)

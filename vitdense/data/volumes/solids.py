"""Volumes with simple solids in noise, every voxel labelled, drawn from (seed, index) alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

CLASSES = ("background", "ball", "box", "rod", "ring")
PALETTE = ((44, 52, 74), (236, 90, 76), (58, 130, 214), (250, 190, 66), (62, 176, 150))

Extent = tuple[int, int, int]
Floats = NDArray[np.float32]

_TILT = 20.0
_REACH = 1.25  # how far from its centre, in radii, the farthest point of any solid lies


@dataclass(frozen=True)
class Volume:
    """voxels (D, H, W) uint8, semantic (D, H, W) uint8 indexing CLASSES."""

    voxels: NDArray[np.uint8]
    semantic: NDArray[np.uint8]


def render_volume(seed: int, index: int, size: Extent, *, noise: float = 0.08, stream: int = 0) -> Volume:
    """Volume `index` of a seed: two to four solids that don't overlap, along any axis and tilted, in a fog that varies
    slowly.

    Brightness is drawn for each solid, whatever its kind, so that its form alone tells what it is. `noise` is the
    deviation of what is added to each voxel, whose whole range is 1.
    """
    rng = np.random.default_rng([seed, stream, index])
    semantic = np.zeros(size, np.uint8)
    bright = _fog(rng, size)
    unit = min(size)
    for _ in range(int(rng.integers(2, 5))):
        kind, radius = int(rng.integers(1, len(CLASSES))), float(rng.uniform(0.22, 0.32)) * unit
        light, turn = rng.uniform(0.5, 0.95), _turn(rng)
        low = np.float32(radius * 0.8)
        for spot in rng.uniform(0, 1, (10, 3)).astype(np.float32):
            centre = np.asarray(low + spot * (np.array(size, np.float32) - 2 * low), np.float32)
            if _lay(semantic, bright, kind, centre, radius, turn, light):
                break
    bright += np.float32(noise) * rng.standard_normal(size, np.float32)
    return Volume(np.clip(bright * 255, 0, 255).astype(np.uint8), semantic)


def _fog(rng: np.random.Generator, size: Extent) -> Floats:
    """(D, H, W): a plane of brightness, low enough to tell from any solid."""
    slopes = rng.uniform(-0.08, 0.08, 3)
    axes = np.ix_(*(np.linspace(-1, 1, side) * slope for side, slope in zip(size, slopes, strict=True)))
    return np.asarray(sum(axes, start=np.float64(rng.uniform(0.15, 0.3))), np.float32)


def _turn(rng: np.random.Generator) -> Floats:
    """(3, 3): the axes in a random order, and turned by at most `_TILT` degrees about each."""
    tilted = Rotation.from_euler("xyz", rng.uniform(-_TILT, _TILT, 3), degrees=True).as_matrix()
    return np.asarray(tilted[rng.permutation(3)], np.float32)


def _lay(
    semantic: NDArray[np.uint8], bright: Floats, kind: int, centre: Floats, radius: float, turn: Floats, light: float
) -> bool:
    """Write one solid in place, in the window that it needs; False where another lies there already."""
    reach = radius * _REACH + 1
    window = tuple(
        slice(max(0, int(middle - reach)), min(side, int(middle + reach) + 1))
        for middle, side in zip(centre, semantic.shape, strict=True)
    )
    grids = np.meshgrid(*(np.arange(part.start, part.stop, dtype=np.float32) for part in window), indexing="ij")
    away = (np.stack(grids) + np.float32(0.5) - centre[:, None, None, None]) / np.float32(radius)
    inside = _inside(CLASSES[kind], np.tensordot(turn, away, axes=1))
    if semantic[window][inside].any():
        return False
    semantic[window][inside] = kind
    bright[window][inside] = light
    return True


def _inside(name: str, place: Floats) -> NDArray[np.bool_]:
    """place: (3, d, h, w) from the solid's centre, in radii -> whether it lies in the solid."""
    a, b, c = place
    if name == "ball":
        return np.asarray(a * a + b * b + c * c < 0.81)
    if name == "box":
        return np.asarray(np.maximum(np.maximum(np.abs(a), np.abs(b)), np.abs(c)) < 0.68)
    across = np.sqrt(a * a + b * b)
    if name == "rod":
        return np.asarray((across < 0.52) & (np.abs(c) < 1.05))
    return np.asarray((across - 0.8) ** 2 + c * c < 0.11)

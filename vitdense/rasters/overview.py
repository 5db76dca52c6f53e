"""A raster and what was predicted of it as one picture, small enough to look at."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdense import pictures
from vitdense.contracts import IGNORE
from vitdense.data.rasters import Source
from vitdense.model import Model
from vitdense.pictures.sheets import MARGIN, PAPER, TILE_WIDTH, width_of

SIDE = width_of(2)
"""Pixels of the longer side at most: as wide as the panel above it."""
SHARES = (2, 98)
"""The percentages of a channel's values that become black and white."""


def draw_overview(source: Source, values: NDArray[Any], nothing: float, model: Model, path: Path) -> None:
    """A panel with a legend, and below it the class map laid over the raster; of depth the panel alone.

    values: (H, W), perhaps still on the disk, with `nothing` where there is no prediction.
    """
    step = max(-(-max(source.size) // SIDE), 1)
    seen = np.array(values[::step, ::step])
    image = as_picture(source, step, seen == nothing)
    if seen.dtype.kind == "f":
        drawn = pictures.depth_panel(image, None, seen)
    else:
        mask = np.where(seen == nothing, IGNORE, seen.astype(np.int32))
        palette = model.palette or pictures.make_palette(model.head.num_classes)
        classes = model.classes or tuple(map(str, range(model.head.num_classes)))
        drawn = pictures.panel(image, None, mask, classes, palette)
        if max(mask.shape) > TILE_WIDTH:
            drawn = _above(drawn, pictures.overlay(image, mask, palette))
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path, quality=90)


def _above(panel: Image.Image, overlay: Image.Image) -> Image.Image:
    """One picture above the other."""
    sheet = Image.new("RGB", (panel.width, panel.height + overlay.height + MARGIN), PAPER)
    sheet.paste(panel, (0, 0))
    sheet.paste(overlay, (MARGIN, panel.height))
    return sheet


def as_picture(source: Source, step: int, missing: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(h, w, 3): every `step`-th pixel's first three channels, or the first alone as grey; black where missing (h, w).

    Bytes are shown as they are; of other values each channel is stretched from its 2nd to its 98th percentile.
    """
    values = source.raster.sampled(step)
    if values.dtype == np.uint8 and source.config.scale is None:
        stretched = values
    else:
        stretched = np.stack([_stretched(channel, ~missing) for channel in values[:3]])
    chosen = stretched[:3] if len(stretched) >= 3 else stretched[:1].repeat(3, axis=0)
    image = np.ascontiguousarray(chosen.transpose(1, 2, 0))  # (h, w, 3)
    image[missing] = 0
    return image


def _stretched(channel: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """channel: (h, w) -> bytes."""
    floats = channel.astype(np.float64)
    low, high = np.percentile(floats[present], SHARES) if present.any() else (0.0, 1.0)
    span = high - low if high > low else 1.0
    return (np.nan_to_num((floats - low) / span).clip(0, 1) * 255).astype(np.uint8)

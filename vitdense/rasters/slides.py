"""Slides to vectors: tiles that show something are embedded by a frozen backbone and pooled to one vector a slide."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

from vitdense.data.rasters import Area, RasterConfig, Source, open_raster
from vitdense.errors import DataError
from vitdense.inference import window_starts
from vitdense.inference.config import resize_images
from vitdense.rasters.writing import identity
from vitdense.zero_shot.features import Encode, extract

WHITE, BLACK = 220 / 255, 10 / 255
"""Where all channels are above the one, or below the other, after scaling, a pixel shows the glass or the rim."""


class SlideConfig(RasterConfig):
    """Tiles of `tile` pixels a side, every `tile_stride` (a tile) apart, the last ones shifted back to the border; with
    `resize_to` they are brought to that side.

    A pixel counts where it is neither missing nor `background`: `white` is where all channels are above 220 / 255 after
    scaling, `black` where all are below 10 / 255. A tile is looked at where at least the share `foreground` counts.
    """

    tile: PositiveInt = 224
    tile_stride: PositiveInt | None = None
    resize_to: PositiveInt | None = None
    background: Literal["none", "white", "black"] = "none"
    foreground: float = Field(default=0.25, ge=0.0, le=1.0)
    tile_batch: PositiveInt = 16
    pool: Literal["mean", "max", "mean_std"] = "mean"


class Encoder(NamedTuple):
    """What embeds tiles: `encode` takes (B, C, H, W), and missing pixels become `mean` (C,); `digest` tells it from
    others."""

    encode: Encode
    mean: tuple[float, ...]
    digest: str


@dataclass(frozen=True)
class Tiles:
    """Vectors (n, C) of a slide's tiles, and their places (n, 2): top and left."""

    vectors: Tensor
    places: NDArray[np.int64]


def embed_slide(encoder: Encoder, path: Path, config: SlideConfig, keep: Path) -> Tiles:
    """The tiles of a slide that show something; DataError where none does. What an earlier call with the same slide,
    options and encoder has put into the file `keep` is taken from there."""
    chosen = config.model_dump(exclude={"pool", "tile_batch"})
    made_of = json.dumps({**identity(path), "options": chosen, "encoder": encoder.digest}, sort_keys=True)
    kept = _read_kept(keep, made_of)
    if kept is not None:
        return kept
    source = Source(open_raster(path, len(encoder.mean), config), config, encoder.mean)
    places: list[tuple[int, int]] = []
    tiles = _batches(source, config, places)
    first = next(tiles, None)
    if first is None:
        raise DataError(
            f"{path}: not one tile of {config.tile} pixels shows anything: missing pixels and background "
            f"({config.background}) leave less than {config.foreground:.0%} of each"
        )
    vectors = extract(encoder.encode, chain([first], tiles))
    found = Tiles(vectors, np.array(places, np.int64))
    keep.parent.mkdir(parents=True, exist_ok=True)
    aside = keep.with_name(keep.name + ".part.npz")
    np.savez(aside, vectors=vectors.numpy(), places=found.places, made_of=np.array(made_of))
    aside.replace(keep)
    return found


def pool(vectors: Tensor, how: Literal["mean", "max", "mean_std"]) -> Tensor:
    """vectors (n, C) of tiles -> (C,), or (2 C,) of mean and deviation (over n, so that one tile has 0)."""
    if how == "max":
        return vectors.amax(dim=0)
    mean = vectors.mean(dim=0)
    return mean if how == "mean" else torch.cat([mean, vectors.std(dim=0, correction=0)])


def shown(pixels: Tensor, missing: NDArray[np.bool_], background: str) -> float:
    """pixels: (C, h, w) after scaling, missing: (h, w) -> the share of pixels that show something."""
    counts = ~torch.from_numpy(missing)
    if background == "white":
        counts &= pixels.amin(dim=0) <= WHITE
    elif background == "black":
        counts &= pixels.amax(dim=0) >= BLACK
    return float(counts.double().mean())


def _batches(source: Source, config: SlideConfig, places: list[tuple[int, int]]) -> Iterator[Tensor]:
    """Batches (B, C, h, w) of the tiles that show something, whose places are added to `places`."""
    height, width = (min(config.tile, side) for side in source.size)
    stride = config.tile_stride or config.tile
    batch: list[Tensor] = []
    for top in window_starts(source.size[0], height, stride):
        for left in window_starts(source.size[1], width, stride):
            pixels, missing = source.read(Area(top, left, height, width))
            share = shown(pixels, missing, config.background)
            if share < config.foreground or share == 0:
                continue
            places.append((top, left))
            batch.append(pixels)
            if len(batch) == config.tile_batch:
                yield _resized(torch.stack(batch), config)
                batch = []
    if batch:
        yield _resized(torch.stack(batch), config)


def _resized(tiles: Tensor, config: SlideConfig) -> Tensor:
    return tiles if config.resize_to is None else resize_images(tiles, (config.resize_to, config.resize_to))


def _read_kept(keep: Path, made_of: str) -> Tiles | None:
    if not keep.exists():
        return None
    with np.load(keep, allow_pickle=False) as kept:
        if str(kept["made_of"]) != made_of:
            return None
        return Tiles(torch.from_numpy(kept["vectors"]), kept["places"])

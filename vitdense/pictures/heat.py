"""Maps of how much over the picture that they are of."""

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vitdense.pictures.sheets import Pixels, Tile, as_picture, contact_sheet, enlarge, place_tiles

IN_A_ROW = 3


def heat_over(image: Image.Image | ArrayLike, heat: ArrayLike, *, alpha: float = 0.65) -> Pixels:
    """The picture (H, W, 3) in grey under a map (h, w) of any scale: its least is dark, its most bright."""
    picture, values = as_picture(image), np.asarray(heat, dtype=np.float32)
    grey = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float32)[..., None]
    size = (picture.shape[1], picture.shape[0])
    large = cv2.resize(_stretched(values), size, interpolation=cv2.INTER_NEAREST)  # cells stay cells
    level = np.rint(255 * large).astype(np.uint8)
    colours = cv2.applyColorMap(level, cv2.COLORMAP_MAGMA)[..., ::-1].astype(np.float32)  # BGR -> RGB
    return np.rint(grey + (colours - grey) * alpha).astype(np.uint8)


def heat_sheet(image: Image.Image | ArrayLike, maps: dict[str, NDArray[np.float32]]) -> Image.Image:
    """The picture and a map for each name, in rows of three."""
    picture = as_picture(image)
    tiles = [Tile("picture", "", Image.fromarray(enlarge(picture)))]
    for name, heat in maps.items():
        drawn = Image.fromarray(enlarge(heat_over(picture, heat), Image.Resampling.BILINEAR))
        tiles.append(Tile(name, f"{heat.min():.2g} to {heat.max():.2g}", drawn))
    rows = [tiles[start : start + IN_A_ROW] for start in range(0, len(tiles), IN_A_ROW)]
    return contact_sheet([place_tiles(row, 0)[0] for row in rows])


def components_panel(image: Image.Image | ArrayLike, components: NDArray[np.float32]) -> Image.Image:
    """The picture beside its three components (3, h, w) in 0..1 as red, green and blue."""
    picture = as_picture(image)
    colours = np.rint(255 * components.transpose(1, 2, 0)).astype(np.uint8)
    drawn = cv2.resize(colours, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_NEAREST)
    tiles = [
        Tile("picture", "", Image.fromarray(enlarge(picture))),
        Tile("first three components", "", Image.fromarray(enlarge(drawn, Image.Resampling.NEAREST))),
    ]
    return place_tiles(tiles, 0)[0]


def _stretched(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)

"""Explanations of pictures in files, as sheets to look at and as arrays."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitdense.contracts import Backbone
from vitdense.data.images import SUFFIXES, read_image
from vitdense.errors import UserError
from vitdense.explaining.attention import Query, attention_maps, attention_rollout, parse_query
from vitdense.explaining.components import principal_components
from vitdense.model import Model
from vitdense.pictures.heat import components_panel, heat_sheet

Kind = Literal["attention", "rollout", "pca"]
LONGEST = 896
"""Pixels of the longer side; larger pictures are shrunk, since attention grows with the square of their cells."""


def explain_files(
    model: Model,
    found: Mapping[Path, Path],
    out: Path,
    kind: Kind,
    *,
    layer: int = -1,
    query: str | None = None,
    track: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> int:
    """Write out/KIND/NAME.jpg and NAME.npy for each picture of `found`; how many. `query` as `parse_query` reads it."""
    who = None if query is None else parse_query(query)
    films = [file for file in found if file.suffix.lower() not in SUFFIXES]
    if films:
        raise UserError(f"{films[0]}: explanations are of pictures; take frames out of videos first")
    for file in track(found):
        image = _fitted(read_image(file))
        images = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(model.get_buffer("mean").device)
        maps = explain(model.backbone, model.normalise(images), kind, layer=layer, query=who)[0].float().cpu().numpy()
        place = out / kind / found[file]
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place.with_name(f"{place.name}.npy"), maps)
        drawn = components_panel(image, maps) if kind == "pca" else heat_sheet(image, _named(kind, maps))
        drawn.save(place.with_name(f"{place.name}.jpg"), quality=92)
    return len(found)


def explain(backbone: Backbone, images: Tensor, kind: Kind, *, layer: int = -1, query: Query | None = None) -> Tensor:
    """images: (B, C, H, W), normalised -> (B, heads, h, w) of attention, (B, h, w) of rollout, (B, 3, h, w) of pca."""
    if kind == "attention":
        return attention_maps(backbone, images, layer=layer, query=query)
    if kind == "rollout":
        return attention_rollout(backbone, images, query=query)
    return principal_components(backbone, images)


def _named(kind: Kind, maps: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    if kind == "rollout":
        return {"rollout": maps}
    return {"all heads": maps.mean(0)} | {f"head {number}": head for number, head in enumerate(maps)}


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    share = LONGEST / max(height, width)
    if share >= 1:
        return image
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))

"""Predictions for pairs of pictures: what changed from the one in A/ to the one of its name in B/."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from vitdense import pictures
from vitdense.data.images import read_image
from vitdense.errors import DataError, UserError
from vitdense.model import Model

BEFORE, AFTER = "A", "B"


def predict_pairs(
    model: Model,
    found: Mapping[Path, Path],
    out: Path,
    *,
    skip_bad: bool = False,
    track: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> tuple[list[Path], list[str]]:
    """Write out/masks/NAME.png, and before, after and what changed side by side as out/overlays/NAME.jpg.

    `found`: files and where they lie below the folders that were given, from which A/ and B/ are left out. A pair that
    can't be read stops, or is counted: the files in A/ that were written for, and the reasons of the others.
    """
    pairs = match_pairs(found)
    written: list[Path] = []
    skipped: list[str] = []
    for file in track(found):
        if file not in pairs:  # the other picture of a pair, or a label
            continue
        try:
            _predict_pair(model, pairs[file], out)
            written.append(file)
        except DataError as error:
            if not skip_bad:
                raise
            skipped.append(str(error))
    return written, skipped


def match_pairs(found: Mapping[Path, Path]) -> dict[Path, tuple[Path | None, Path | None, Path]]:
    """The first file of each pair -> the one in A/, the one in B/ and the name of both; UserError without any."""
    sides: dict[Path, dict[str, Path]] = {}
    for file, target in found.items():
        places = [place for place, part in enumerate(target.parts[:-1]) if part in (BEFORE, AFTER)]
        if places:
            parts = list(target.parts)
            side = parts.pop(places[-1])
            sides.setdefault(Path(*parts), {})[side] = file
    if not sides:
        raise UserError(
            f"this model compares pairs of pictures: give a folder that holds {BEFORE}/ and {AFTER}/, with files of "
            "equal names"
        )
    return {next(iter(pair.values())): (pair.get(BEFORE), pair.get(AFTER), name) for name, pair in sides.items()}


def _predict_pair(model: Model, pair: tuple[Path | None, Path | None, Path], out: Path) -> None:
    first, second, name = pair
    if first is None or second is None:
        raise DataError(f"{first or second}: no picture of this name in {AFTER if second is None else BEFORE}/")
    before, after = read_image(first), read_image(second)
    if before.shape != after.shape:
        told = [f"{each.shape[1]} x {each.shape[0]}" for each in (before, after)]
        raise DataError(f"{second}: the second picture is {told[1]}, but {first} is {told[0]} pixels")
    result = model.predict([np.stack([before, after])])[0].cpu().to(torch.int16)
    mask, overlay = out / "masks" / f"{name}.png", out / "overlays" / f"{name}.jpg"
    for path in (mask, overlay):
        path.parent.mkdir(parents=True, exist_ok=True)
    pictures.save_palette_png(result, model.palette, mask)
    sheet = pictures.panel(after, None, result, model.classes, model.palette, before=before)
    sheet.save(overlay, quality=92)

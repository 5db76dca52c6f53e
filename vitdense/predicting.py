"""Predictions for files and folders: a palette mask and an overlay for each picture."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vitdense import pictures
from vitdense.data.images import SUFFIXES, read_image
from vitdense.errors import DataError, UserError
from vitdense.model import Model


@dataclass
class Predicted:
    """What was written, and which files could not be read, with the reason."""

    written: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def find_pictures(paths: Sequence[Path]) -> dict[Path, Path]:
    """Pictures in files and folders -> the relative path, without suffix, that their results go to."""
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            found |= {file: file.relative_to(path).with_suffix("") for file in inside}
        elif path.exists():
            found[path] = Path(path.stem)
        else:
            raise UserError(f"{path}: no such file or folder")
    if not found:
        raise UserError(f"no pictures in {', '.join(map(str, paths))}; looked for {', '.join(sorted(SUFFIXES))}")
    taken: dict[Path, Path] = {}
    for file, target in found.items():
        if target in taken:
            raise UserError(f"{taken[target]} and {file} would be written to the same {target}.png; predict them apart")
        taken[target] = file
    return found


def predict_files(
    model: Model,
    found: dict[Path, Path],
    out: Path,
    *,
    skip_bad: bool = False,
    track: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> Predicted:
    """Write out/masks/NAME.png and out/overlays/NAME.jpg; a file that can't be read stops, or is counted."""
    done = Predicted()
    for file in track(found):
        try:
            image = read_image(file)
        except DataError as error:
            if not skip_bad:
                raise
            done.skipped.append(str(error))
            continue
        mask = model.predict([image])[0].to("cpu", torch.int16)
        mask_path, overlay_path = (out / kind / found[file] for kind in ("masks", "overlays"))
        for path in (mask_path, overlay_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        pictures.save_palette_png(mask, model.palette, mask_path.with_name(mask_path.name + ".png"))
        pictures.panel(image, None, mask, model.classes, model.palette).save(
            overlay_path.with_name(overlay_path.name + ".jpg"), quality=92
        )
        done.written.append(file)
    return done

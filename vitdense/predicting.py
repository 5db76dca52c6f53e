"""Predictions for files, folders and videos: a palette mask or a depth map, and an overlay, for each picture."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitdense import pictures, videos
from vitdense.data.images import SUFFIXES, read_image
from vitdense.errors import DataError, UserError
from vitdense.model import Model

Pixels = NDArray[np.uint8]


@dataclass
class Predicted:
    """What was written, and which files could not be read, with the reason."""

    written: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def find_pictures(paths: Sequence[Path]) -> dict[Path, Path]:
    """Pictures and videos in files and folders -> the relative path, without suffix, that their results go to."""
    known = SUFFIXES | videos.SUFFIXES
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in known)
            found |= {file: file.relative_to(path).with_suffix("") for file in inside}
        elif path.exists():
            found[path] = Path(path.stem)
        else:
            raise UserError(f"{path}: no such file or folder")
    if not found:
        raise UserError(f"no pictures in {', '.join(map(str, paths))}; looked for {', '.join(sorted(known))}")
    taken: dict[Path, Path] = {}
    for file, target in found.items():
        if target in taken:
            raise UserError(f"{taken[target]} and {file} would be written to the same {target}.png; predict them apart")
        taken[target] = file
    return found


def kind_of(model: Model) -> str:
    """The folder that a model's results go to."""
    return "depth" if model.head.dense == "depth" else "masks"


def predict_files(
    model: Model,
    found: dict[Path, Path],
    out: Path,
    *,
    skip_bad: bool = False,
    track: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> Predicted:
    """Write out/masks/NAME.png (out/depth/NAME.png in millimetres) and out/overlays/NAME.jpg for each picture.

    Of a video, NAME/000000.png and so on for its frames, and out/overlays/NAME.mp4, depth beside the frames. A file
    that can't be read stops, or is counted.
    """
    writer = _Writer(model, out)
    done = Predicted()
    for file in track(found):
        try:
            if file.suffix.lower() in videos.SUFFIXES:
                writer.film(file, found[file])
            else:
                writer.picture(read_image(file), found[file])
        except DataError as error:
            if not skip_bad:
                raise
            done.skipped.append(str(error))
            continue
        done.written.append(file)
    return done


class _Writer:
    """Predicts pictures, and writes what a model of this kind gives."""

    def __init__(self, model: Model, out: Path) -> None:
        self.model, self.out, self.kind = model, out, kind_of(model)

    def picture(self, image: Pixels, target: Path) -> Tensor:
        """image: (H, W, 3) -> its prediction (H, W) on the CPU, written."""
        result: Tensor = self.model.predict([image])[0].cpu()
        file, overlay = self._place(self.kind, target, ".png"), self._place("overlays", target, ".jpg")
        if self.kind == "depth":
            result = result.float()
            pictures.save_depth_png(result, file)
            panel = pictures.depth_panel(image, None, result)
        else:
            result = result.to(torch.int16)
            pictures.save_palette_png(result, self.model.palette, file)
            panel = pictures.panel(image, None, result, self.model.classes, self.model.palette)
        panel.save(overlay, quality=92)
        return result

    def film(self, file: Path, target: Path) -> None:
        """Every frame as a picture, and all of them as a film whose colours mean the same throughout."""
        scale: tuple[float, float] | None = None
        with videos.Film(self._place("overlays", target, ".mp4"), videos.frame_rate(file)) as film:
            for number, frame in enumerate(videos.read_frames(file)):
                result = self.picture(frame, target / f"{number:06d}")
                if self.kind == "masks":
                    film.add(np.asarray(pictures.overlay(frame, result, self.model.palette)))
                    continue
                metres = result.numpy()
                scale = scale or pictures.depth_range(metres)
                film.add(np.concatenate([frame, pictures.colour_depth(metres, *scale)], axis=1))

    def _place(self, kind: str, target: Path, suffix: str) -> Path:
        path = self.out / kind / target
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(path.name + suffix)

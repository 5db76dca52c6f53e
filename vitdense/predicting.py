"""Predictions for files, folders and videos: masks, depth maps, things or classes, and overlays."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitdense import pictures, videos
from vitdense.coco_json import Id, Result, to_results, write_results
from vitdense.data.images import SUFFIXES, read_image
from vitdense.errors import DataError, UserError
from vitdense.model import Model
from vitdense.predicting_clips import ClassWriter, predict_frames
from vitdense.predicting_pairs import predict_pairs

Pixels = NDArray[np.uint8]


RESULTS = "predictions.json"
CLASSES = "classes.csv"


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
    """Where a model's results go: a folder, or a file for all things of all pictures."""
    if model.head.detects:
        return RESULTS
    if model.head.classifies:
        return CLASSES
    return "depth" if model.head.dense == "depth" else "masks"


def predict_files(
    model: Model,
    found: dict[Path, Path],
    out: Path,
    *,
    skip_bad: bool = False,
    image_ids: Mapping[str, Id] | None = None,
    track: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> Predicted:
    """Write out/masks/NAME.png (out/depth/NAME.png in millimetres) and out/overlays/NAME.jpg for each picture.

    Of a video, NAME/000000.png and so on for its frames, and out/overlays/NAME.mp4, depth beside the frames. Things go
    into one out/predictions.json, COCO's list of results, whose pictures are numbered by `image_ids` (by file name; one
    that it lacks is a fault), or named by where their results go. Classes go into one out/classes.csv, a row for each
    picture and each clip of a video. A file that can't be read stops, or is counted.
    """
    if model.head.compares:
        return Predicted(*predict_pairs(model, found, out, skip_bad=skip_bad, track=track))
    writer = _Writer(model, out, image_ids)
    done = Predicted()
    for file in track(found):
        try:
            if file.suffix.lower() in videos.SUFFIXES:
                writer.film(file, found[file])
            else:
                writer.read(file, found[file])
        except DataError as error:
            if not skip_bad:
                raise
            done.skipped.append(str(error))
            continue
        done.written.append(file)
    writer.finish()
    return done


def read_image_ids(path: Path) -> dict[str, Id]:
    """File name -> id of the pictures in a COCO file; DataError where it is none."""
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        return {Path(image["file_name"]).name: image["id"] for image in images}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: no COCO file with images that have file_name and id ({error!r})") from None


class _Writer:
    """Predicts pictures, and writes what a model of this kind gives."""

    def __init__(self, model: Model, out: Path, image_ids: Mapping[str, Id] | None) -> None:
        self.model, self.out, self.kind, self.image_ids = model, out, kind_of(model), image_ids
        self.results: list[Result] = []
        self.classes = ClassWriter(model, out, CLASSES) if model.head.classifies else None

    def finish(self) -> None:
        """Write what is written once."""
        if self.classes is not None:
            self.classes.finish()
        if self.model.head.detects:
            self.out.mkdir(parents=True, exist_ok=True)
            write_results(self.results, self.out / RESULTS)

    def read(self, file: Path, target: Path) -> None:
        """One picture in a file."""
        if self.classes is not None:
            self.classes.picture(file, read_image(file), self._place("overlays", target, ".jpg"))
            return
        number: Id = target.as_posix()
        if self.image_ids is not None:
            if file.name not in self.image_ids:
                raise DataError(f"{file}: the COCO file that ids are taken from has no picture of this name")
            number = self.image_ids[file.name]
        image = read_image(file)
        self.write(image, self.model.predict([image])[0].cpu(), target, number)

    def write(self, image: Pixels, found: Any, target: Path, number: Id) -> Tensor:
        """image: (H, W, 3) and its prediction, which is written -> that (H, W), or the overlay of its things
        (H, W, 3)."""
        if self.model.head.detects:
            self.results += to_results(found, number)
            drawn = pictures.draw_likely(image, found, self.model.classes, self.model.palette)
            drawn.save(self._place("overlays", target, ".jpg"), quality=92)
            return torch.from_numpy(np.array(drawn))
        result: Tensor = found.classes() if self.model.head.segments else found
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
        if self.classes is not None:
            self.classes.film(file, self._place("overlays", target, ".mp4"))
            return
        scale: tuple[float, float] | None = None
        with videos.Film(self._place("overlays", target, ".mp4"), videos.frame_rate(file)) as film:
            for number, (frame, found) in enumerate(self._of_frames(file)):
                place = target / f"{number:06d}"
                result = self.write(frame, found, place, place.as_posix())
                if self.model.head.detects:
                    film.add(result.numpy())
                    continue
                if self.kind == "masks":
                    film.add(np.asarray(pictures.overlay(frame, result, self.model.palette)))
                    continue
                metres = result.numpy()
                scale = scale or pictures.depth_range(metres)
                film.add(np.concatenate([frame, pictures.colour_depth(metres, *scale)], axis=1))

    def _of_frames(self, file: Path) -> Iterable[tuple[Pixels, Any]]:
        """Every frame with its prediction."""
        if self.model.takes_clips:
            return predict_frames(self.model, file)
        return ((frame, self.model.predict([frame])[0].cpu()) for frame in videos.read_frames(file))

    def _place(self, kind: str, target: Path, suffix: str) -> Path:
        path = self.out / kind / target
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(path.name + suffix)

"""Predictions for files, folders and videos: masks, depth maps, things, segments or classes, and overlays."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdense import videos
from vitdense.coco_json import Id
from vitdense.data.images import SUFFIXES, read_image
from vitdense.errors import DataError, UserError
from vitdense.model import Model
from vitdense.predicting_clips import predict_clips
from vitdense.predicting_pairs import predict_pairs
from vitdense.writing import Shot, Writer, writer_of

Pixels = NDArray[np.uint8]

_SILENT = "compares pictures with texts, and says nothing of a picture alone: tools/zero_shot.py asks it"


@dataclass
class Predicted:
    """What was written, and where to; which files could not be read, with the reason; and which tasks give nothing."""

    written: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    places: list[Path] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)


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
    into one out/predictions.json, COCO's list of results; segments into out/panoptic/NAME.png and out/panoptic.json,
    COCO's panoptic form. Pictures are numbered there by `image_ids` (by file name; one that it lacks is a fault), or
    named by where their results go. Classes go into one out/classes.csv, a row for each picture and each clip of a
    video. Of several tasks each has all this in out/TASK. A file that can't be read stops, or is counted.
    """
    if model.head.compares:
        return Predicted(*predict_pairs(model, found, out, skip_bad=skip_bad, track=track), places=[out / "masks"])
    writers = _Writers(model, out, image_ids)
    done = Predicted(places=writers.places(), silent=writers.silent)
    for file in track(found):
        try:
            if file.suffix.lower() in videos.SUFFIXES:
                writers.film(file, found[file])
            else:
                writers.read(file, found[file])
        except DataError as error:
            if not skip_bad:
                raise
            done.skipped.append(str(error))
            continue
        done.written.append(file)
    writers.finish()
    return done


def read_image_ids(path: Path) -> dict[str, Id]:
    """File name -> id of the pictures in a COCO file; DataError where it is none."""
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        return {Path(image["file_name"]).name: image["id"] for image in images}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: no COCO file with images that have file_name and id ({error!r})") from None


class _Writers:
    """Predicts pictures and videos, and hands what each head gives to its writer; "" is the task of a lone head."""

    def __init__(self, model: Model, out: Path, image_ids: Mapping[str, Id] | None) -> None:
        self.model, self.image_ids = model, image_ids
        self.several = bool(model.head.tasks)
        self.models = {task: model.alone(task) for task in model.head.tasks} if self.several else {"": model}
        kinds = {task: writer_of(alone.head) for task, alone in self.models.items()}
        self.writers: dict[str, Writer] = {
            task: kind(self.models[task], out / task) for task, kind in kinds.items() if kind is not None
        }
        self.silent = [f"task {task} {_SILENT}" for task, kind in kinds.items() if kind is None and task]
        if not self.writers:
            raise UserError(f"{type(model.head).__name__}: no head has results to write; it {_SILENT}")

    def places(self) -> list[Path]:
        """The folder or file that each task's results go to."""
        return [writer.out / writer.kind for writer in self.writers.values()]

    def finish(self) -> None:
        """Write what is written once."""
        for writer in self.writers.values():
            writer.finish()

    def read(self, file: Path, target: Path) -> None:
        """One picture in a file."""
        number = self._number(file, target)
        image = read_image(file)
        found = self._look(image)
        for task, writer in self.writers.items():
            writer.picture(Shot(image, file, target, number), found[task])

    def film(self, file: Path, target: Path) -> None:
        """All frames of a video; heads that look at clips go through it one by one, since their clips differ."""
        rate = videos.frame_rate(file)
        if self.model.takes_clips:
            for task, writer in self.writers.items():
                with writer.film(file, target, rate) as add:
                    for frames, found in predict_clips(self.models[task], file):
                        add(frames, found)
            return
        with ExitStack() as films:
            adders = {
                task: films.enter_context(writer.film(file, target, rate)) for task, writer in self.writers.items()
            }
            for frame in videos.read_frames(file):
                seen = self._look(frame)
                for task, add in adders.items():
                    add([frame], seen[task])

    def _look(self, image: Pixels) -> dict[str, Any]:
        """image: (H, W, 3) -> the prediction of each task, on the CPU."""
        found = self.model.predict([image])[0]
        return {task: (found[task] if self.several else found).cpu() for task in self.writers}

    def _number(self, file: Path, target: Path) -> Id:
        if self.image_ids is None:
            return target.as_posix()
        if file.name not in self.image_ids:
            raise DataError(f"{file}: the COCO file that ids are taken from has no picture of this name")
        return self.image_ids[file.name]

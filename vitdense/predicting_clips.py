"""Predictions of models that look at several frames at once, and of those that name one class of the whole."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitdense import pictures, videos
from vitdense.errors import UserError
from vitdense.model import Model

Pixels = NDArray[np.uint8]

BEST = 5
SHOWN = 3
"""So many classes are written, and drawn."""


class Named(NamedTuple):
    """What a picture, or the frames [start, end) of a video, is likely to be, the likeliest first."""

    file: Path
    start: int
    end: int
    classes: tuple[str, ...]
    scores: tuple[float, ...]


class ClassWriter:
    """Names pictures and videos by class: rows of one table, and overlays."""

    def __init__(self, model: Model, out: Path, table: str) -> None:
        self.model, self.out, self.table = model, out, table
        self.rows: list[Named] = []

    def finish(self) -> None:
        """Write the table: file, start and end frame, and for each of the best classes its name and score."""
        self.out.mkdir(parents=True, exist_ok=True)
        best = range(1, 1 + min(BEST, len(self.model.classes)))
        with (self.out / self.table).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            columns = [f"{kind}{place}" for place in best for kind in ("class", "score")]
            writer.writerow(["file", "start_frame", "end_frame", *columns])
            for row in self.rows:
                pairs = [
                    part for name, score in zip(row.classes, row.scores, strict=True) for part in (name, f"{score:.4f}")
                ]
                writer.writerow([row.file, row.start, row.end, *pairs])

    def picture(self, file: Path, image: Pixels, overlay: Path) -> None:
        """One picture (H, W, 3)."""
        named = self._named(file, 0, 1, self._probabilities(image))
        self.rows.append(named)
        _save(image, named, overlay)

    def film(self, file: Path, overlay: Path) -> None:
        """A row for each clip of a video, and one for all of it, by the mean of its clips' probabilities; the overlay
        names each clip."""
        start, total = 0, torch.zeros(len(self.model.classes))
        rows: list[Named] = []
        with videos.Film(overlay, videos.frame_rate(file)) as film:
            for part in videos.read_parts(file, self._span()):
                found = self._probabilities(self._clip(part))
                rows.append(self._named(file, start, start + len(part), found))
                total, start = total + found * len(part), start + len(part)
                for frame in part:
                    film.add(pictures.draw_classes(frame, rows[-1].classes[:SHOWN], rows[-1].scores[:SHOWN]))
        whole = [self._named(file, 0, start, total / start)] if len(rows) != 1 else []
        self.rows += whole + rows

    def _span(self) -> int:
        """So many frames of a video make one clip."""
        if not self.model.takes_clips:
            return 1
        return frames_of(self.model) * self.model.inference.frame_stride

    def _clip(self, part: list[Pixels]) -> Pixels:
        """Frames of a video -> what the model looks at: the picture, or a clip (T, H, W, 3), the last frame held."""
        if not self.model.takes_clips:
            return part[0]
        chosen = part[:: self.model.inference.frame_stride]
        return np.stack(chosen + [part[-1]] * (frames_of(self.model) - len(chosen)))

    def _probabilities(self, given: Pixels) -> Tensor:
        logits: Tensor = self.model.predict([given])[0]
        return logits.float().softmax(dim=-1).cpu()

    def _named(self, file: Path, start: int, end: int, probabilities: Tensor) -> Named:
        best = probabilities.topk(min(BEST, len(probabilities)))
        names = tuple(self.model.classes[index] for index in best.indices.tolist())
        return Named(file, start, end, names, tuple(best.values.tolist()))


def frames_of(model: Model) -> int:
    """So many frames the model looks at; UserError where nobody said."""
    if model.inference.frames is None:
        raise UserError("a model of clips reads videos by inference.frames: set how many frames it learnt from")
    return model.inference.frames


def predict_frames(model: Model, file: Path) -> Iterator[tuple[Pixels, Tensor]]:
    """Every frame (H, W, 3) of a video and its prediction (H, W) on the CPU, of clips of inference.frames frames.

    The last clip reaches back into the one before, so that it is whole; a shorter video is one clip.
    """
    length = frames_of(model)
    before: list[Pixels] = []
    for part in videos.read_parts(file, length):
        lacking = length - len(part)
        clip = before[len(before) - lacking :] + part if lacking and before else part
        found: Tensor = model.predict([np.stack(clip)])[0].cpu()  # (T, H, W)
        yield from zip(part, found[len(clip) - len(part) :], strict=True)
        before = part


def _save(image: Pixels, named: Named, overlay: Path) -> None:
    from PIL import Image

    Image.fromarray(pictures.draw_classes(image, named.classes[:SHOWN], named.scores[:SHOWN])).save(overlay, quality=92)

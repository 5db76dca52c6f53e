"""Classes of whole pictures and clips as a table."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vitdense import pictures, videos
from vitdense.model import Model
from vitdense.writing.writer import OVERLAYS, AddFrames, Pixels, Shot, Writer

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


class ClassWriter(Writer):
    """classes.csv has a row for each picture and each clip of a video, and one for all of a video."""

    kind = "classes.csv"

    def __init__(self, model: Model, out: Path) -> None:
        super().__init__(model, out)
        self.rows: list[Named] = []

    def write(self, shot: Shot, found: Tensor) -> None:
        """found: (K,) logits -> a row."""
        self.rows.append(self._named(shot.file, 0, 1, _chances(found)))

    def draw(self, image: Pixels, found: Tensor) -> Image.Image:
        """The picture with the likeliest classes."""
        return Image.fromarray(self._drawn(image, _chances(found)))

    @contextmanager
    def film(self, file: Path, target: Path, rate: Fraction) -> Iterator[AddFrames]:
        """A row for each clip of a video, and one for all of it, by the mean of its frames' chances; the overlay names
        each clip."""
        total, rows = torch.zeros(len(self.model.classes)), list[Named]()
        with videos.Film(self.place(OVERLAYS, target, ".mp4"), rate) as film:

            def add(frames: Sequence[Pixels], found: Tensor) -> None:
                nonlocal total
                chances, start = _chances(found), rows[-1].end if rows else 0
                rows.append(self._named(file, start, start + len(frames), chances))
                total = total + chances * len(frames)
                for frame in frames:
                    film.add(self._drawn(frame, chances))

            yield add
        if len(rows) > 1:
            self.rows.append(self._named(file, 0, rows[-1].end, total / rows[-1].end))
        self.rows += rows

    def finish(self) -> None:
        """Write the table: file, start and end frame, and for each of the best classes its name and score."""
        self.out.mkdir(parents=True, exist_ok=True)
        best = range(1, 1 + min(BEST, len(self.model.classes)))
        with (self.out / self.kind).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            columns = [f"{kind}{place}" for place in best for kind in ("class", "score")]
            writer.writerow(["file", "start_frame", "end_frame", *columns])
            for row in self.rows:
                pairs = [
                    part for name, score in zip(row.classes, row.scores, strict=True) for part in (name, f"{score:.4f}")
                ]
                writer.writerow([row.file, row.start, row.end, *pairs])

    def _named(self, file: Path, start: int, end: int, chances: Tensor) -> Named:
        return Named(file, start, end, *self._best(chances, BEST))

    def _drawn(self, image: Pixels, chances: Tensor) -> Pixels:
        return pictures.draw_classes(image, *self._best(chances, SHOWN))

    def _best(self, chances: Tensor, most: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Names and chances of the likeliest classes."""
        best = chances.topk(min(most, len(chances)))
        return tuple(self.model.classes[index] for index in best.indices.tolist()), tuple(best.values.tolist())


def _chances(logits: Tensor) -> Tensor:
    return logits.float().softmax(dim=-1)

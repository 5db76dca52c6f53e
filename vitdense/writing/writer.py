"""What every writer of predictions does: a file for a picture, an overlay, a film, and what is written once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdense import videos
from vitdense.coco_json import Id
from vitdense.model import Model

Pixels = NDArray[np.uint8]
AddFrames = Callable[[Sequence[Pixels], Any], None]
"""Takes frames (H, W, 3) of a film and their prediction: one frame, or those that have one prediction in common."""

OVERLAYS = "overlays"


@dataclass(frozen=True)
class Shot:
    """A picture, or a frame of a video: its pixels (H, W, 3), the file it is of, the relative path, without suffix,
    that its results go to, and its number or name in lists of results."""

    image: Pixels
    file: Path
    target: Path
    number: Id


class Writer(ABC):
    """Writes the predictions of one head into a folder."""

    kind: ClassVar[str]
    """The folder, or the file, that results go to."""

    def __init__(self, model: Model, out: Path) -> None:
        self.model, self.out = model, out

    @abstractmethod
    def write(self, shot: Shot, found: Any) -> None:
        """The files of one picture's prediction, or a note of it for `finish`."""

    @abstractmethod
    def draw(self, image: Pixels, found: Any) -> Image.Image:
        """image: (H, W, 3) -> what a person looks at."""

    def painter(self) -> Callable[[Pixels, Any], Pixels]:
        """What draws the frames of one film (H, W, 3), so that colours mean the same throughout."""
        return lambda image, found: np.asarray(self.draw(image, found))

    def finish(self) -> None:
        """Write what is written once."""
        return

    def picture(self, shot: Shot, found: Any) -> None:
        """One picture's files and overlay."""
        self.write(shot, found)
        self.draw(shot.image, found).save(self.place(OVERLAYS, shot.target, ".jpg"), quality=92)

    @contextmanager
    def film(self, file: Path, target: Path, rate: Fraction) -> Iterator[AddFrames]:
        """A video of `rate` frames per second: each frame as a picture, TARGET/000000 and so on, and all of them as one
        film."""
        paint, count = self.painter(), 0
        with videos.Film(self.place(OVERLAYS, target, ".mp4"), rate) as film:

            def add(frames: Sequence[Pixels], found: Any) -> None:
                nonlocal count
                (frame,) = frames
                place = target / f"{count:06d}"
                self.write(Shot(frame, file, place, place.as_posix()), found)
                film.add(paint(frame, found))
                count += 1

            yield add

    def place(self, kind: str, target: Path, suffix: str) -> Path:
        """Where a file of this kind goes; its folder is made."""
        path = self.out / kind / target
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(path.name + suffix)

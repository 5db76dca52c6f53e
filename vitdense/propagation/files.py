"""Videos in files: folders of frames, films, and the layout of DAVIS; masks and overlaid films that are written."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import tee
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitdense import pictures, videos
from vitdense.contracts import Backbone
from vitdense.data.images import SUFFIXES, open_picture, read_image, read_mask
from vitdense.errors import DataError, UserError
from vitdense.propagation.config import PropagationConfig
from vitdense.propagation.masks import Mask
from vitdense.propagation.sequence import propagate

Palette = Sequence[tuple[int, int, int]]

VOID = 255
"""Pixels of a first mask with this value belong to no object."""
RATE = Fraction(24)
"""Frames per second of overlaid films of folders, as of DAVIS."""


@dataclass(frozen=True)
class Clip:
    """A video in a file, or where there are `frames` in a folder of these, and the mask of its first frame."""

    name: str
    source: Path
    mask: Path
    frames: tuple[Path, ...] | None = None

    def read(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Each frame (H, W, 3) and the name of its mask."""
        if self.frames is None:
            yield from ((f"{number:06d}", frame) for number, frame in enumerate(videos.read_frames(self.source)))
            return
        yield from ((file.stem, read_image(file)) for file in self.frames)

    def rate(self) -> Fraction:
        """Frames per second."""
        return RATE if self.frames is not None else videos.frame_rate(self.source)


def find_clip(source: Path, mask: Path) -> Clip:
    """A folder of frames or a video file; UserError where it is neither."""
    if source.is_dir():
        return Clip(source.resolve().name, source, mask, _frames(source))
    if source.is_file() and source.suffix.lower() in videos.SUFFIXES:
        return Clip(source.stem, source, mask)
    raise UserError(f"{source}: expected a folder of frames, or a video ({', '.join(sorted(videos.SUFFIXES))})")


def find_davis(root: Path, names: Iterable[str], *, resolution: str = "480p") -> list[Clip]:
    """ROOT/JPEGImages/480p/NAME/00000.jpg and so on, with ROOT/Annotations/480p/NAME/00000.png; DataError names what is
    missing."""
    clips = []
    for name in names:
        source = root / "JPEGImages" / resolution / name
        if not source.is_dir():
            raise DataError(f"{source}: no such sequence")
        frames = _frames(source)
        mask = root / "Annotations" / resolution / name / f"{frames[0].stem}.png"
        if not mask.is_file():
            raise DataError(f"{mask}: no mask of the first frame")
        clips.append(Clip(name, source, mask, frames))
    return clips


def with_truth(clips: Iterable[Clip]) -> list[str]:
    """Names of the clips that have a mask for every frame beside the first one's."""
    return [
        clip.name
        for clip in clips
        if clip.frames and all((clip.mask.parent / f"{file.stem}.png").is_file() for file in clip.frames)
    ]


def propagate_clips(
    backbone: Backbone,
    clips: Sequence[Clip],
    out: Path,
    config: PropagationConfig,
    *,
    overlays: bool = True,
    track: Callable[[Iterable[Clip]], Iterable[Clip]] = iter,
) -> int:
    """Write out/masks/CLIP/FRAME.png for every frame of every clip, in the colours of its first mask, and
    out/overlays/CLIP.mp4; how many masks."""
    count = 0
    for clip in track(clips):
        first, palette = read_first_mask(clip.mask)
        place = out / "masks" / clip.name
        place.mkdir(parents=True, exist_ok=True)
        read, shown = tee(clip.read())
        masks = propagate(backbone, (frame for _, frame in read), first, config)
        with ExitStack() as stack:
            film = stack.enter_context(_film(out / "overlays" / f"{clip.name}.mp4", clip)) if overlays else None
            for (name, frame), mask in zip(shown, masks, strict=True):
                pictures.save_palette_png(mask, palette, place / f"{name}.png")
                count += 1
                if film is not None:
                    film.add(pictures.draw_objects(frame, mask, palette))
    return count


def read_first_mask(path: Path) -> tuple[Mask, Palette]:
    """(H, W) of a file, and the file's colours for its values, or ours where it has none; 255 is background."""
    stored = read_mask(path)
    mask = np.where((stored == VOID) & (stored.dtype == np.uint8), 0, stored).astype(np.int32)
    if not mask.any():
        held = f"only 0 and {VOID}, which are" if stored.any() else "only 0, which is"
        raise DataError(f"{path} holds {held} no object: number them from 1 on")
    colours = open_picture(path).getpalette()
    if colours is None:
        return mask, ((0, 0, 0), *pictures.make_palette(int(mask.max())))
    palette = [(red, green, blue) for red, green, blue in np.reshape(colours, (-1, 3)).tolist()]
    return mask, palette[:VOID]


def _film(path: Path, clip: Clip) -> videos.Film:
    path.parent.mkdir(parents=True, exist_ok=True)
    return videos.Film(path, clip.rate())


def _frames(folder: Path) -> tuple[Path, ...]:
    """Pictures of a folder in the order of their numbers, or of their names where they are no numbers."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not files:
        raise DataError(f"{folder}: no frames in it; looked for {', '.join(sorted(SUFFIXES))}")
    stems = [path.stem for path in files]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DataError(f"{folder}: two frames are called {twice!r}, and would have one mask")
    numbered = all(stem.isdecimal() for stem in stems)
    return tuple(sorted(files, key=lambda path: (int(path.stem) if numbered else 0, path.name)))

"""Videos, read and written frame by frame through PyAV, which is no dependency: without it a message says so."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vitdense.data.clips.decoding import SUFFIXES as SUFFIXES
from vitdense.data.clips.decoding import Video, pyav


def read_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Every frame of the first video stream, upright, as (H, W, 3) RGB; damage is a DataError."""
    # 0 leaves the number of threads to the codec.
    with Video(path, threads=0) as video:
        yield from video.every()


def read_parts(path: Path, length: int) -> Iterator[list[NDArray[np.uint8]]]:
    """The same, `length` frames at a time; the last part holds what is left."""
    part: list[NDArray[np.uint8]] = []
    for frame in read_frames(path):
        part.append(frame)
        if len(part) == length:
            yield part
            part = []
    if part:
        yield part


def frame_rate(path: Path) -> Fraction:
    """Frames per second, 25 where the file doesn't say."""
    with Video(path) as video:
        return Fraction(video.average_rate or 25)


class Film:
    """A video file being written, in H.264, at the size of its first frame but for an odd last row or column."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path, self.rate = path, rate
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> Self:
        self._container = pyav(self.path).open(str(self.path), mode="w")
        return self

    def add(self, frame: NDArray[np.uint8]) -> None:
        """frame: (H, W, 3) RGB."""
        height, width = (side // 2 * 2 for side in frame.shape[:2])
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self.rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        pixels = np.ascontiguousarray(frame[:height, :width])
        self._container.mux(self._stream.encode(pyav(self.path).VideoFrame.from_ndarray(pixels, format="rgb24")))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
        if self._stream is None:
            self.path.unlink(missing_ok=True)

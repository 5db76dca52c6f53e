"""Videos, frame by frame, through PyAV, which is no dependency: without it a message says what to install."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vitdense.errors import DataError, UserError

SUFFIXES = frozenset({".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg"})


def read_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Every frame of the first video stream as (H, W, 3) RGB; damage is a DataError."""
    av = _pyav(path)
    try:
        with av.open(str(path)) as container:
            _video_stream(container, path)
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except av.FFmpegError as fault:
        raise DataError(f"{path}: damaged video ({fault})") from None


def frame_rate(path: Path) -> Fraction:
    """Frames per second, 25 where the file doesn't say."""
    av = _pyav(path)
    try:
        with av.open(str(path)) as container:
            return Fraction(_video_stream(container, path).average_rate or 25)
    except av.FFmpegError as fault:
        raise DataError(f"{path}: damaged video ({fault})") from None


class Film:
    """A video file being written, in H.264, at the size of its first frame but for an odd last row or column."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path, self.rate = path, rate
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> Self:
        self._container = _pyav(self.path).open(str(self.path), mode="w")
        return self

    def add(self, frame: NDArray[np.uint8]) -> None:
        """frame: (H, W, 3) RGB."""
        height, width = (side // 2 * 2 for side in frame.shape[:2])
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self.rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        pixels = np.ascontiguousarray(frame[:height, :width])
        self._container.mux(self._stream.encode(_pyav(self.path).VideoFrame.from_ndarray(pixels, format="rgb24")))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
        if self._stream is None:
            self.path.unlink(missing_ok=True)


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise DataError(f"{path}: holds no video stream")
    return container.streams.video[0]


def _pyav(path: Path) -> Any:
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: videos need PyAV; `pip install av`, or give a folder of frames") from None
    return av

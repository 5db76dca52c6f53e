"""Videos through PyAV: when each frame is shown, and frames by their number, upright."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vitdense.data.images import MAX_PIXELS
from vitdense.errors import DataError, UserError

Picture = NDArray[np.uint8]

SUFFIXES = frozenset({".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp"})
HIDDEN = 2
"""So many of the last frames a file may count and never show, as some writers have it."""


class _Marks(NamedTuple):
    """Presentation times of all frames, in order, and the numbers of those that decoding can start at."""

    pts: list[int]
    keys: list[int]


class _UnreliableError(Exception):
    """A file whose times don't tell its frames."""


class Video:
    """A video file, read in a `with` block; whatever fails becomes a DataError that names the file.

    Times come from the file's packets, which are all looked at and not decoded; so a varying rate is known exactly.
    `threads` is 1 for workers, which decode side by side.
    """

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        self.path, self.threads = Path(path), threads
        self._av = pyav(path)
        self._reformatter: Any = self._av.video.reformatter.VideoReformatter()
        self._container: Any = None
        self._marks: _Marks | None = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def average_rate(self) -> Fraction | None:
        """Frames per second, None where the file doesn't say."""
        return self._stream.average_rate  # type: ignore[no-any-return]

    def times(self) -> NDArray[np.float64]:
        """(N,): the seconds from the first frame to each, growing; of constant rate where the file doesn't say."""
        try:
            return self._times()
        except self._av.FFmpegError as fault:
            raise self._damaged(fault) from None

    def frames(self, wanted: Iterable[int]) -> Iterator[tuple[int, Picture]]:
        """(number, (H, W, 3) RGB) of frames by their number, in order and each once; call `times` before.

        Decoding starts at the last frame that it can start at; where the file's times turn out to be wrong, all frames
        are decoded and counted.
        """
        left = sorted(set(wanted))
        try:
            if self._marks is not None:
                try:
                    for number, frame in self._by_seeking(left, self._marks):
                        yield number, self._pixels(frame, number)
                        left = left[1:]
                except _UnreliableError:
                    self._marks = None
            if left:
                yield from self._by_counting(left)
        except self._av.FFmpegError as fault:
            raise self._damaged(fault) from None

    def every(self) -> Iterator[Picture]:
        """All frames from the first on, (H, W, 3) RGB."""
        self._open()
        number = -1
        try:
            for number, frame in enumerate(self._container.decode(self._stream)):
                yield self._pixels(frame, number)
        except self._av.FFmpegError as fault:
            raise self._damaged(fault) from None
        if number < 0:
            raise DataError(f"{self.path}: a video without frames")

    # ------------------------------------------------------------ opening

    def _open(self) -> None:
        self._close()
        try:
            self._container = self._av.open(str(self.path), metadata_errors="replace")
        except self._av.FFmpegError as fault:
            raise self._damaged(fault) from None
        if not self._container.streams.video:
            self._close()
            raise DataError(f"{self.path}: holds no video stream")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            self._close()
            raise DataError(f"{self.path}: damaged video, or of a codec that PyAV can't decode")
        self._stream.codec_context.thread_count = self.threads

    def _close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def _damaged(self, fault: Exception) -> DataError:
        if isinstance(fault, FileNotFoundError):
            return DataError(f"{self.path}: no such file")
        if self.path.is_file() and self.path.stat().st_size == 0:
            return DataError(f"{self.path}: the file is empty")
        return DataError(f"{self.path}: damaged video, or none ({getattr(fault, 'strerror', fault)})")

    # ------------------------------------------------------------ times

    def _times(self) -> NDArray[np.float64]:
        found = [
            (packet.pts, packet.is_keyframe)
            for packet in self._container.demux(self._stream)
            if packet.size and not packet.is_discard
        ]
        if not found:
            raise DataError(f"{self.path}: a video without frames")
        pts = sorted(time for time, _ in found if time is not None)
        if len(set(pts)) < len(found):
            rate = self._stream.average_rate or self._stream.guessed_rate or 25
            return np.arange(len(found)) / float(rate)
        place = {time: number for number, time in enumerate(pts)}
        # AVI has no times of frames that are stored in another order than shown, and what is made up for them is wrong.
        if not (self._container.format.name == "avi" and self._stream.codec_context.has_b_frames):
            self._marks = _Marks(pts, sorted(place[time] for time, is_key in found if is_key) or [0])
        times: NDArray[np.float64] = (np.array(pts, np.float64) - pts[0]) * float(self._stream.time_base)
        return times

    # ------------------------------------------------------------ frames

    def _by_seeking(self, wanted: list[int], marks: _Marks) -> Iterator[tuple[int, Any]]:
        place = {time: number for number, time in enumerate(marks.pts)}
        decoded: Iterator[Any] = iter(())
        last = -1
        for target in wanted:
            if target >= len(marks.pts):
                raise _UnreliableError
            key = marks.keys[max(bisect_right(marks.keys, target) - 1, 0)]
            if last < 0 or key > last:
                self._container.seek(marks.pts[key], stream=self._stream)
                decoded, last = self._container.decode(self._stream), -1
            for frame in decoded:
                number = place.get(frame.pts, -1)
                # Before the frame that decoding starts at others may come; behind it none is left out.
                if number < 0 or number > (key if last < key else last + 1):
                    raise _UnreliableError
                last = number
                if number == target:
                    yield target, frame
                    break
            else:
                raise _UnreliableError

    def _by_counting(self, wanted: list[int]) -> Iterator[tuple[int, Picture]]:
        """From the first frame on; the few that a file counts and never shows are the last one that it does."""
        self._open()
        left, number = iter(wanted), -1
        target = next(left, None)
        picture: Picture | None = None
        for number, frame in enumerate(self._container.decode(self._stream)):
            if target is None:
                return
            if number == target:
                yield number, self._pixels(frame, number)
                target = next(left, None)
            elif target - number <= HIDDEN:
                picture = self._pixels(frame, number)
        if target is None:
            return
        if number < 0:
            raise DataError(f"{self.path}: a video without frames")
        if target - number > HIDDEN or picture is None:
            raise DataError(f"{self.path}: damaged video (frame {target} is missing: {number + 1} can be decoded)")
        for late in [target, *left]:
            yield late, picture

    def _pixels(self, frame: Any, number: int) -> Picture:
        if frame.width * frame.height > MAX_PIXELS:
            raise DataError(f"{self.path}: {frame.width} x {frame.height} pixels; at most {MAX_PIXELS:,} are allowed")
        if frame.is_corrupt:
            raise DataError(f"{self.path}: damaged video (frame {number} can't be decoded)")
        # One for all frames: a frame's own makes a converter, with threads of its own, each time.
        pixels: Picture = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        turns = round(frame.rotation / 90) % 4  # degrees, against the clock
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def pyav(path: str | Path) -> Any:
    """PyAV, which is no dependency: without it UserError says what to install."""
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: videos need PyAV; `pip install av`, or give a folder of frames") from None
    return av

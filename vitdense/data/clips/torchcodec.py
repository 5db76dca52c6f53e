"""Frames decoded by torchcodec, which is no dependency; which frame is which is still read off the packets."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vitdense.data.clips.decoding import Picture, Video
from vitdense.errors import DataError, UserError


class TorchcodecVideo(Video):
    """A `Video` whose frames torchcodec decodes: the same frames, bit for bit.

    Where packets don't tell which frame is which, or where torchcodec comes to a frame of another time, as it does in
    program streams, PyAV decodes.
    https://meta-pytorch.org/torchcodec
    """

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        super().__init__(path, threads=threads)
        self._decoders = torchcodec(path)

    def frames(self, wanted: Iterable[int]) -> Iterator[tuple[int, Picture]]:
        """(number, (H, W, 3) RGB) of frames by their number, in order and each once; call `times` before."""
        left = sorted(set(wanted))
        decoder = self._decoder(left)
        if decoder is None or self._marks is None:
            yield from super().frames(left)
            return
        while left:
            try:
                frame = decoder.get_frame_at(left[0])
            except RuntimeError as fault:
                raise DataError(f"{self.path}: damaged video (frame {left[0]} can't be decoded: {fault})") from None
            if abs(frame.pts_seconds - self._marks.pts[left[0]] * self._stream.time_base) > 1e-6:
                break
            yield left.pop(0), frame.data.numpy()
        if left:
            yield from super().frames(left)

    def _decoder(self, wanted: list[int]) -> Any:
        """torchcodec's decoder of the first video stream, or None where it counts other frames than the packets."""
        if self._marks is None or not wanted or wanted[-1] >= len(self._marks.pts):
            return None
        try:
            decoder = self._decoders.VideoDecoder(
                str(self.path),
                stream_index=self._stream.index,
                dimension_order="NHWC",
                num_ffmpeg_threads=self.threads,
            )
        except (RuntimeError, ValueError) as fault:
            if "load libtorchcodec" in str(fault):
                raise _unloadable(self.path, fault) from None
            raise DataError(f"{self.path}: damaged video, or none (torchcodec: {fault})") from None
        return decoder if len(decoder) == len(self._marks.pts) else None


def torchcodec(path: str | Path) -> Any:
    """torchcodec's decoders; UserError where it is not installed."""
    try:
        from torchcodec import decoders
    except (ImportError, RuntimeError, OSError) as fault:
        raise _unloadable(path, fault) from None
    return decoders


def _unloadable(path: str | Path, fault: Exception) -> UserError:
    reason = str(fault).splitlines()[0]
    return UserError(
        f"{path}: data.decoder is torchcodec, which can't be loaded ({reason}); it needs FFmpeg; or set pyav"
    )

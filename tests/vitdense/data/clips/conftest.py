"""Videos that tests write: each frame shows its number, in squares for the bits of it."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BITS, SIDE = 6, 8


def write_video(
    path: Path,
    frames: int,
    *,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    rate: int = 25,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
) -> Path:
    """Grey, with a white square at the top left and the number at the bottom right; `times` are milliseconds."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixel_format
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            pixels = np.full((*size, 3), 90, np.uint8)
            pixels[: size[0] // 4, : size[1] // 4] = 255
            for bit in range(BITS):
                right = size[1] - bit * SIDE
                pixels[-SIDE:, right - SIDE : right] = 170 if number >> bit & 1 else 20
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return write_video


@pytest.fixture(scope="session")
def number_of() -> Callable[[Any], int]:
    """The number that a frame (H, W, 3) shows."""

    def read(frame: Any) -> int:
        row = np.asarray(frame)[-SIDE // 2, ::-1].mean(-1)
        return sum(int(row[bit * SIDE + SIDE // 2] > 110) << bit for bit in range(BITS))

    return read

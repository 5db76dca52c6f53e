"""The only decoder: Pillow with a list of allowed formats; pictures become RGB, masks never, damage a DataError."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# Pillow knows a format only once its plugin is loaded; these two are not loaded by default.
from PIL import TiffImagePlugin as TiffImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin
from PIL.ImageFile import ImageFile

from vitdense.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".gif"})
MAX_PIXELS = 89_478_485
"""Larger pictures are refused: a 110 kB PNG can unfold to 5 GB. It is the size above which Pillow warns."""

# What Pillow's decoders raise on damaged files, found by flipping bytes; OSError holds "not an image" and "not found".
_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LOSSY = ("JPEG", "MPO")


def read_image(path: str | Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """The picture as a person sees it: (H, W, 3) RGB, its EXIF orientation applied, 16 bits brought to 8.

    Of the file, or of its `content`, where `path` is the name that messages give.
    """
    return read_shrunken(path, 1, content).pixels


def open_picture(path: str | Path) -> Image.Image:
    """The picture as its file stores it, in its own mode and not turned, as other libraries' transforms take it."""
    with _opened(path) as image:
        image.load()
        return image.copy()


class Shrunken(NamedTuple):
    """pixels (ceil(H / shrink), ceil(W / shrink), 3) of a picture of `size` (H, W)."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    shrink: int


def read_shrunken(path: str | Path, shrink: int, content: bytes | None = None) -> Shrunken:
    """The picture divided by `shrink` (1, 2, 4, 8) where its decoder does that: a JPEG that needs no turning, for which
    it saves most of the time; any other is read whole.
    """
    with _opened(path, content) as image:
        turn = _TURNS.get(_orientation(image))
        width, height = image.size
        if shrink > 1 and image.format == "JPEG" and turn is None and min(width, height) >= shrink:
            image.draft(image.mode, (width // shrink, height // shrink))
        else:
            shrink = 1
        image.load()
        rgb = _to_rgb(image)
        pixels = np.asarray(rgb if turn is None else rgb.transpose(turn))
        return Shrunken(pixels, (height, width) if shrink > 1 else (pixels.shape[0], pixels.shape[1]), shrink)


def read_mask(path: str | Path) -> NDArray[np.integer]:
    """The stored class indices: (H, W), uint8, uint16 or int32; palette masks give their indices, 1 bit 0 and 1."""
    with _opened(path) as image:
        if image.format in _LOSSY:
            raise ValueError("a mask saved as JPEG has lost its class indices; save masks as PNG")
        raw = str(image.tile[0].args) if isinstance(image, ImageFile) and image.tile else ""
        mode, turn = image.mode, _TURNS.get(_orientation(image))
        if mode not in ("1", "L", "P", "I") and not mode.startswith("I;16"):
            raise ValueError(f"a mask holds one class index for each pixel, but this file has mode {mode} (colours)")
        image.load()
        values = np.asarray(image if turn is None else image.transpose(turn))
        if mode == "1":
            return values.astype(np.uint8)
        # Pillow stretches 2 and 4 bit grey to 0..255; class indices must be brought back.
        return values // {"L;2": 85, "L;4": 17}.get(raw, 1) if mode == "L" else values


def read_depth(path: str | Path, scale: float) -> NDArray[np.float64]:
    """(H, W) metres from a file with `scale` units a metre, 0 where nothing was measured.

    The file must have 16 bits or more: with 8 it is a picture of depth, not a measurement.
    """
    values = read_mask(path)
    if values.dtype == np.uint8:
        raise DataError(f"{path}: a depth map is a grey PNG or TIFF of 16 bits, this file has 8")
    return values.astype(np.float64) / scale


def read_size(path: str | Path, content: bytes | None = None) -> tuple[int, int]:
    """(H, W) that reading the file would give, from its header alone."""
    with _opened(path, content) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


@contextmanager
def _opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """An opened picture; whatever fails inside becomes a DataError that names the path and the reason."""
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are allowed")
            yield image
    except _FAULTS as fault:
        raise DataError(f"{path}: {_reason(path, content, fault)}") from None


def _reason(path: str | Path, content: bytes | None, fault: BaseException) -> str:
    if isinstance(fault, FileNotFoundError):
        return "no such file"
    if isinstance(fault, IsADirectoryError):
        return "is a folder, not a picture"
    if isinstance(fault, UnidentifiedImageError):
        empty = Path(path).stat().st_size == 0 if content is None else not content
        return "the file is empty" if empty else f"not a picture in a known format ({', '.join(FORMATS)})"
    if isinstance(fault, ValueError):
        return str(fault)
    return f"damaged picture ({fault})"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 to 8."""
    # Pillow turns TIFFs itself, and tells their turned size. Of a PNG, `getexif` would decode all pixels to find
    # a tag behind them; one that stands before them is in `info` already.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    value = image.getexif().get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB in 8 bits; `convert` alone would clip 16-bit values to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.size and (int(values.min()) < 0 or int(values.max()) > 65535):
            raise ValueError("32-bit integer picture with values outside 0..65535")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("float picture: its range isn't known; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")

"""The decoder: what it reads, what it refuses, and how it says so."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.data import images
from vitdense.data.images import read_image, read_mask, read_size
from vitdense.errors import DataError

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


def write(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def turned(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return write(
        path, Image.fromarray(PICTURE), exif=exif.tobytes(), **({"quality": 95} if path.suffix == ".jpg" else {})
    )


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_lossless_formats_are_read_exactly(tmp_path: Path, suffix: str) -> None:
    assert np.array_equal(read_image(write(tmp_path / f"x{suffix}", Image.fromarray(PICTURE))), PICTURE)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".gif"])
def test_lossy_formats_are_read_as_rgb(tmp_path: Path, suffix: str) -> None:
    image = read_image(write(tmp_path / f"x{suffix}", Image.fromarray(PICTURE)))
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "1", "P"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = write(tmp_path / ("x.tif" if mode == "CMYK" else "x.png"), Image.fromarray(PICTURE).convert(mode))
    assert read_image(path).shape == (20, 30, 3)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_picture_and_size(tmp_path: Path, name: str, orientation: int) -> None:
    path = turned(tmp_path / name, orientation)
    straight = turned(tmp_path / f"straight-{name}", 1)
    expected = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x),
    }[orientation](read_image(straight))
    assert np.array_equal(read_image(path), expected)
    assert read_size(path) == expected.shape[:2]


def test_sixteen_bits_keep_their_range_as_a_picture(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    image = read_image(write(tmp_path / "x.png", Image.fromarray(ramp)))
    assert np.array_equal(image[..., 0], (ramp >> 8).astype(np.uint8))


def test_sixteen_bits_keep_their_values_as_a_mask(tmp_path: Path) -> None:
    values = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    assert np.array_equal(read_mask(write(tmp_path / "x.png", Image.fromarray(values))), values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_masks_give_their_indices(tmp_path: Path, bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (20, 30)).astype(np.uint8)
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([(7 * number) % 256 for number in range(3 * 2**bits)])
    assert np.array_equal(read_mask(write(tmp_path / "x.png", image, bits=bits)), values)


def test_one_bit_masks_give_zero_and_one(tmp_path: Path) -> None:
    import cv2

    values = np.random.default_rng(0).integers(0, 2, (20, 30)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "x.png"), values * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
    assert np.array_equal(read_mask(tmp_path / "x.png"), values)


@pytest.mark.parametrize("depth", [2, 4])
def test_low_depth_grey_masks_keep_their_values(tmp_path: Path, depth: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**depth, (20, 32)).astype(np.uint8)
    (tmp_path / "x.png").write_bytes(grey_png(values, depth))
    assert np.array_equal(read_mask(tmp_path / "x.png"), values)


def grey_png(values: np.ndarray[tuple[int, int], np.dtype[np.uint8]], depth: int) -> bytes:
    """A grey PNG of 2 or 4 bits, which Pillow can read but not write."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = values.shape
    per_byte = 8 // depth
    rows = values.reshape(height, width // per_byte, per_byte)
    packed = sum(rows[..., i].astype(np.uint16) << (8 - depth * (i + 1)) for i in range(per_byte))
    assert isinstance(packed, np.ndarray)
    body = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def test_a_coloured_mask_is_refused_and_the_message_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "x.png", Image.fromarray(PICTURE))
    with pytest.raises(
        DataError, match=re.escape(f"{path}: a mask holds one class index for each pixel, but this file has mode RGB")
    ):
        read_mask(path)


def test_a_jpeg_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="JPEG has lost its class indices"):
        read_mask(write(tmp_path / "x.jpg", Image.fromarray(PICTURE).convert("L")))


def damaged(name: str) -> Callable[[bytes], bytes]:
    return {
        "cut in half": lambda data: data[: len(data) // 2],
        "cut at the end": lambda data: data[:-60],
        "only a header": lambda data: data[:24],
        "empty": lambda data: b"",
        "a web page": lambda data: b"<html><body>Not found</body></html>",
        "noise": lambda data: np.random.default_rng(0).bytes(500),
    }[name]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("name", ["cut in half", "cut at the end", "only a header", "empty", "a web page", "noise"])
def test_damaged_files_raise_a_data_error_that_names_them(tmp_path: Path, suffix: str, name: str) -> None:
    path = write(tmp_path / f"x{suffix}", Image.fromarray(PICTURE))
    path.write_bytes(damaged(name)(path.read_bytes()))
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_image(path)


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    with pytest.raises(DataError, match="the file is empty"):
        read_image(tmp_path / "x.jpg")


def test_a_missing_file_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.jpg: no such file"):
        read_size(tmp_path / "x.jpg")


def test_a_folder_is_called_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 500)
    with pytest.raises(DataError, match="30 x 20 pixels; at most 500"):
        read_image(write(tmp_path / "x.png", Image.fromarray(PICTURE)))


def test_a_float_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="float picture"):
        read_image(write(tmp_path / "x.tif", Image.fromarray(np.zeros((4, 4), np.float32))))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp", ".gif"])
def test_flipped_bytes_give_a_picture_or_a_data_error(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    path = write(tmp_path / f"x{suffix}", Image.fromarray(PICTURE))
    clean = np.frombuffer(path.read_bytes(), np.uint8)
    found: list[str] = []
    for _ in range(60):
        bytes_ = clean.copy()
        bytes_[rng.integers(0, len(bytes_), 2)] ^= rng.integers(1, 256, 2).astype(np.uint8)
        path.write_bytes(bytes_.tobytes())
        for read in (read_image, read_mask, read_size):
            try:
                read(path)
            except DataError as fault:
                found.append(str(fault))
    assert all(str(path) in message for message in found)

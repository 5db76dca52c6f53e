"""Small sets of pictures with captions, written for each test."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdense.contracts import DATA, Samples, Split


def jpeg(number: int, size: tuple[int, int] = (40, 60), form: str = "JPEG") -> bytes:
    """A picture of (H, W) whose red tells its number."""
    pixels = np.full((*size, 3), 90, np.uint8)
    pixels[..., 0] = 10 * number
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, form)
    return held.getvalue()


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"p{number}.jpg").write_bytes(jpeg(number))


def write_shard(path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    """A tar as webdataset writes it: members one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = members.items() if isinstance(members, Mapping) else members
    with tarfile.open(path, "w") as archive:
        for name, content in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def pairs(first: int, count: int) -> dict[str, bytes]:
    """Members of `count` samples with a text each."""
    found: dict[str, bytes] = {}
    for number in range(first, first + count):
        found[f"{number:06d}.jpg"] = jpeg(number % 25)
        found[f"{number:06d}.txt"] = f"caption {number}".encode()
    return found


def build(name: str, split: Split = "train", **options: Any) -> Samples:
    return DATA.create(name, {"size": 16, **options}).build(split)


@pytest.fixture
def make_list(tmp_path: Path) -> Callable[..., Path]:
    """Writes `count` pictures and a list of them; gives the folder."""

    def make(text: str | bytes, name: str = "train.csv", count: int = 4) -> Path:
        write_pictures(tmp_path / "images", count)
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return tmp_path

    return make


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Writes `count` shards of `each` samples, and one more for validation."""

    def make(count: int = 3, each: int = 5) -> Path:
        for number in range(count):
            write_shard(tmp_path / "shards" / f"{number:04d}.tar", pairs(number * each, each))
        write_shard(
            tmp_path / "val.tar", {"a.png": jpeg(1, form="PNG"), "a.json": json.dumps({"caption": "x"}).encode()}
        )
        return tmp_path

    return make

"""Small data sets in files, written for each test."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


def save_mask(path: Path, values: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a `folder` data set: `count` pictures of `size` (H, W) a split, masks of `num_classes` and 255."""

    def make(count: int = 6, size: tuple[int, int] = (40, 48), num_classes: int = 3) -> Path:
        rng = np.random.default_rng(0)
        for split in ("train", "val"):
            for number in range(count):
                image = tmp_path / "images" / split / f"p{number}.png"
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(image)
                mask = rng.integers(0, num_classes, size).astype(np.uint8)
                mask[0] = 255
                save_mask(tmp_path / "annotations" / split / f"p{number}.png", mask)
        names = [f"class{number}" for number in range(num_classes)]
        (tmp_path / "classes.json").write_text(json.dumps({"classes": names, "ignore_index": 255}))
        return tmp_path

    return make

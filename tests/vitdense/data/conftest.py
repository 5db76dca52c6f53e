"""Small data sets in files, written for each test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


SPLITS = ("train", "val")
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "bird"}]


def coco_content(count: int = 3) -> dict[str, Any]:
    """`count` pictures of 40 x 60 with three things; the last picture shows nothing. The first thing of each is red."""
    annotations = []
    for image in range(count - 1):
        for place, category in enumerate((7, 3, 90)):
            box = [6 + 14 * place, 5 + 2 * place, 12, 10]
            annotations.append(
                {
                    "id": 1 + 3 * image + place,
                    "image_id": 10 + image,
                    "category_id": category,
                    "bbox": box,
                    "area": 100.0 + place,
                    "iscrowd": 0,
                    "segmentation": [_around(box)],
                }
            )
    images = [{"id": 10 + index, "file_name": f"p{index}.png", "width": 60, "height": 40} for index in range(count)]
    return {"images": images, "annotations": annotations, "categories": [dict(each) for each in CATEGORIES]}


def _around(box: list[int]) -> list[int]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def write_pictures(folder: Path, count: int = 3, suffix: str = ".png") -> None:
    """Pictures of 40 x 60, grey, whose first thing is red."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full((40, 60, 3), 90, np.uint8)
        if number < count - 1:
            pixels[5:15, 6:18] = (255, 0, 0)
        Image.fromarray(pixels).save(folder / f"p{number}{suffix}")


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    """Writes a `coco` data set, both splits alike; `change` gets the content of train's JSON, or gives its text."""

    def make(change: Callable[[dict[str, Any]], object] | None = None) -> Path:
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for split in SPLITS:
            content = coco_content()
            given = change(content) if change is not None and split == "train" else None
            text = given if isinstance(given, str) else json.dumps(content)
            (tmp_path / "annotations" / f"instances_{split}.json").write_text(text)
            write_pictures(tmp_path / "images" / split)
        return tmp_path

    return make


VOC_OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"""
VOC_SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


def voc_object(
    name: str = "dog", x0: object = 7, y0: object = 6, x1: object = 18, y1: object = 15, difficult: object = 0
) -> str:
    return VOC_OBJECT.format(name=name, difficult=difficult, x0=x0, y0=y0, x1=x1, y1=y1)


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Path]:
    """Writes a `voc_boxes` data set; `text` is the annotation of p0, or its objects."""

    def make(text: str | None = None) -> Path:
        write_pictures(tmp_path / "JPEGImages", suffix=".jpg")
        for folder in ("Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text("p0\np1\np2\n")
        objects = {"p0": voc_object() if text is None else text, "p1": voc_object("cat", 1, 1, 60, 40, 1), "p2": ""}
        for name, inside in objects.items():
            whole = inside.startswith(("<annotation", "<?xml", "<!", "not"))
            content = inside if whole else f"<annotation>{VOC_SIZE}{inside}</annotation>"
            (tmp_path / "Annotations" / f"{name}.xml").write_text(content)
        return tmp_path

    return make


@pytest.fixture
def make_yolo(tmp_path: Path) -> Callable[..., Path]:
    """Writes a `yolo` data set; `lines` are the labels of p0, `names` what data.yaml says of classes."""

    def make(lines: str = "0 0.2 0.25 0.2 0.25\n", names: str = "names: [dog, cat]\n") -> Path:
        (tmp_path / "data.yaml").write_text(names)
        for split in SPLITS:
            write_pictures(tmp_path / "images" / split)
            (tmp_path / "labels" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "labels" / split / "p0.txt").write_text(lines)
            (tmp_path / "labels" / split / "p1.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.5\n")
        return tmp_path

    return make

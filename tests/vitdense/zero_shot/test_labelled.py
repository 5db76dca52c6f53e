"""Pictures with classes, prepared as a publisher or as open_clip does."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

import vitdense
from vitdense.contracts import HEADS
from vitdense.errors import DataError
from vitdense.model import Model
from vitdense.preprocessing import Preprocess
from vitdense.zero_shot.labelled import Labelled, Prepared, preparation_of, read_labelled

PREPARE = Preprocess((40, 40), "shortest")


def write(root: Path, name: str, size: tuple[int, int] = (50, 40)) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_pictures_are_those_of_torchvisions_folder_under_open_clips_transform(shared_data: Path) -> None:
    root = shared_data / "clothing" / "test"
    theirs = ImageFolder(str(root), open_clip.image_transform((40, 40), False, mean=(0.0,) * 3, std=(1.0,) * 3))
    ours = read_labelled(root)
    assert list(ours.names) == theirs.classes
    assert [str(file) for file in ours.files] == [path for path, _ in theirs.samples]
    assert list(ours.labels) == theirs.targets
    chosen = range(0, 100, 9)
    some = Labelled(tuple(ours.files[i] for i in chosen), tuple(ours.labels[i] for i in chosen), ours.names)
    prepared = Prepared(some, PREPARE, 5)
    found = torch.cat(list(prepared))
    assert torch.equal(found / 255, torch.stack([theirs[index][0] for index in chosen]))
    assert prepared.labels().tolist() == [theirs[index][1] for index in chosen]
    assert read_labelled(shared_data / "clothing").files == ours.files  # the part that is no training


def test_a_table_names_pictures_beside_it(tmp_path: Path) -> None:
    for name in ("a.png", "in/b.png", "zebra/c.png"):
        write(tmp_path, name)
    # As spreadsheets write it, with a mark before the first byte.
    (tmp_path / "list.csv").write_text("\ufeffpath,label\na.png,dog\nin/b.png,cat\n", encoding="utf-8")
    found = read_labelled(tmp_path / "list.csv")
    assert [file.relative_to(tmp_path).as_posix() for file in found.files] == ["a.png", "in/b.png"]
    assert ([found.names[label] for label in found.labels], found.names) == (["dog", "cat"], ("cat", "dog"))


def test_files_that_can_not_be_read_stop_or_are_told(tmp_path: Path) -> None:
    good = write(tmp_path, "a.png")
    (tmp_path / "text.png").write_text("no picture")
    rows = "path,label\na.png,cat\ngone.png,cat\ntext.png,dog\na.png,\n,dog\n"
    (tmp_path / "list.csv").write_bytes(rows.encode() + b"a.png,caf\xe9\n")
    found = read_labelled(tmp_path / "list.csv")
    with pytest.raises(DataError, match=r"list\.csv:5: label is empty"):
        list(Prepared(found, PREPARE, 4))
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        list(Prepared(Labelled(found.files, found.labels, found.names), PREPARE, 4))
    prepared = Prepared(found, PREPARE, 4, skip_bad=True)
    for _ in range(2):  # again gives the same
        assert [batch.shape for batch in prepared] == [(1, 3, 40, 40)]
        assert [found.files[place] for place in prepared.read] == [good]
        assert len(prepared.skipped) == 5
    assert any("is not UTF-8" in reason for reason in prepared.skipped)


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    found = Labelled((tmp_path / "gone.png",), (0,), ("cat",))
    with pytest.raises(DataError, match=r"not one of 1 pictures can be read; the first: .*gone\.png: no such file"):
        list(Prepared(found, PREPARE, 4, skip_bad=True))


def test_a_picture_that_is_too_narrow_is_told(tmp_path: Path) -> None:
    found = Labelled((write(tmp_path, "thin.png", (1, 400)),), (0,), ("cat",))
    with pytest.raises(DataError, match=r"thin\.png: 1 x 400 pixels are too narrow"):
        list(Prepared(found, Preprocess((40, 40), "longest"), 4))


def test_pictures_of_several_sizes_come_in_batches_of_one(tmp_path: Path) -> None:
    sizes = [(64, 32), (64, 32), (32, 64), (64, 32)]
    files = tuple(write(tmp_path, f"{place}.png", size) for place, size in enumerate(sizes))
    prepared = Prepared(Labelled(files, (0,) * 4, ("cat",)), Preprocess((64, 64), "patches", patch=16), 3)
    assert [batch.shape[0] for batch in prepared] == [2, 1, 1]


@pytest.mark.parametrize("kind", ["gone", "file", "no folders", "no pictures"])
def test_a_place_without_pictures_is_told(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("hello")
    elif kind != "gone":
        (place / "cat" if kind == "no pictures" else place).mkdir(parents=True)
    with pytest.raises(DataError, match=str(place)):
        read_labelled(place)


def test_without_a_publisher_pictures_come_as_openais_at_the_backbones_side() -> None:
    for name, side in (("vit_nano_patch8", 64), ("swin_nano", 224)):
        backbone = vitdense.create_backbone(name)
        model = Model(backbone, HEADS.create("linear", {"num_classes": 2}).build_for(backbone))
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8))
        found = torch.from_numpy(np.array(preparation_of(model)(picture))).permute(2, 0, 1) / 255
        theirs = open_clip.image_transform((side, side), False, mean=(0.0,) * 3, std=(1.0,) * 3)
        assert torch.equal(found, theirs(picture))

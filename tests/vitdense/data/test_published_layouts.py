"""Cityscapes, VOC, PASCAL-Context and COCO-Stuff: their layouts, what their values mean, what is said of a fault."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.contracts import DATA, IGNORE, Samples, Split
from vitdense.data import cityscapes, coco_stuff, voc
from vitdense.data.segmentation import PairedSamples
from vitdense.errors import DataError


def write(root: Path, picture: str, mask: str, values: list[int]) -> None:
    for name in (picture, mask):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    drawn = np.array([values], np.uint8)
    Image.fromarray(np.zeros((*drawn.shape, 3), np.uint8)).save(root / picture)
    Image.fromarray(drawn).save(root / mask)


def build(name: str, root: Path, split: Split = "val", **options: object) -> Samples:
    return DATA.create(name, {"root": str(root), **options}).build(split)


def classes(samples: Samples) -> list[int]:
    return [int(value) for value in samples[0, 0]["mask"][0]]


def test_cityscapes_has_the_19_classes_of_torchvisions_table() -> None:
    from torchvision.datasets import Cityscapes

    table = sorted((each.train_id, each.id, each.name, each.color) for each in Cityscapes.classes)
    table = [row for row in table if 0 <= row[0] < 255]
    ours = zip(range(19), cityscapes._IDS, cityscapes.CLASSES, cityscapes.PALETTE, strict=True)
    assert list(ours) == table


def test_cityscapes_reads_ids_and_train_ids(tmp_path: Path) -> None:
    picture, stem = "leftImg8bit/val/ulm/ulm_0_1_leftImg8bit.png", "gtFine/val/ulm/ulm_0_1_gtFine"
    write(tmp_path, picture, f"{stem}_labelIds.png", [7, 33, 0, 6, 255])
    write(tmp_path, picture, f"{stem}_labelTrainIds.png", [0, 18, 255, 255, 1])
    assert classes(build("cityscapes", tmp_path)) == [0, 18, IGNORE, IGNORE, IGNORE]
    assert classes(build("cityscapes", tmp_path, labels="train_ids")) == [0, 18, IGNORE, IGNORE, 1]
    assert build("cityscapes", tmp_path)[0, 0]["id"] == "ulm/ulm_0_1"
    assert build("cityscapes", tmp_path).audit() == []


def test_a_value_that_cityscapes_does_not_have_is_named(tmp_path: Path) -> None:
    name = "gtFine/val/ulm/a_gtFine_labelIds.png"
    write(tmp_path, "leftImg8bit/val/ulm/a_leftImg8bit.png", name, [34])
    [fault] = build("cityscapes", tmp_path).audit()
    allowed = "allowed: 7, 8, 11..13, 17, 19..28, 31..33, ignored: 0..6, 9, 10, 14..16, 18, 29, 30, 255"
    assert fault == f"{tmp_path / name}: values without a class: 34; {allowed}"


def test_cityscapes_names_a_picture_without_labels(tmp_path: Path) -> None:
    write(tmp_path, "leftImg8bit/val/ulm/a_leftImg8bit.png", "gtFine/val/ulm/a_gtFine_color.png", [7])
    [fault] = build("cityscapes", tmp_path).audit()
    assert fault.endswith(f"no mask {tmp_path / 'gtFine/val/ulm/a_gtFine_labelIds.png'}")


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """Three pictures: one to train on, one that SBD adds, one to validate."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name, folder, value in (("a", "Class", 1), ("a", "ClassAug", 2), ("b", "ClassAug", 3), ("c", "Class", 20)):
        write(root, f"JPEGImages/{name}.jpg", f"Segmentation{folder}/{name}.png", [0, value, 255])
    for name, text in {"train": "a\n", "trainaug": "a\nb\n", "aug": "b\n", "val": "c\n"}.items():
        path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("lists", "names"), [("train", ["a"]), ("trainaug", ["a", "b"]), (["train", "aug"], ["a", "b"])]
)
def test_voc_trains_on_the_lists_that_are_named(voc_root: Path, lists: object, names: list[str]) -> None:
    samples = build("voc", voc_root, "train", train_list=lists, crop=8)
    assert [samples[0, index]["id"] for index in range(len(samples))] == names
    assert samples.audit() == []


def test_vocs_own_masks_stand_above_those_of_sbd(voc_root: Path) -> None:
    samples = build("voc", voc_root, "train", train_list="trainaug", crop=8)
    assert isinstance(samples, PairedSamples)
    assert [pair.mask.parent.name for pair in samples.pairs] == ["SegmentationClass", "SegmentationClassAug"]
    assert classes(build("voc", voc_root)) == [0, 20, IGNORE]


def test_voc_names_what_a_list_names_and_is_missing(voc_root: Path) -> None:
    (voc_root / "VOCdevkit/VOC2012/JPEGImages/c.jpg").unlink()
    assert [fault.rpartition("/")[2] for fault in build("voc", voc_root).audit()] == ["c.jpg: no such picture"]
    with pytest.raises(DataError, match=r"trainval\.txt: no such file; expected"):
        build("voc", voc_root, "train", train_list="trainval")


def test_the_sample_of_voc_serves_both_splits_and_its_palette_is_ours(shared_data: Path) -> None:
    root = shared_data / "voc_sample"
    for split in ("train", "val"):
        samples = build("voc", root, split)
        assert len(samples) == 3
        assert samples.audit() == []
    assert np.unique(build("voc", root)[0, 0]["mask"].numpy()).tolist() == [IGNORE, 0, 5, 15]
    with Image.open(root / "SegmentationClass" / "2011_000003.png") as mask:
        palette = mask.getpalette()
    assert palette is not None
    assert palette[:63] == [part for colour in voc.LABELS.palette for part in colour]
    names = [name.replace(" ", "").replace("/", "") for name in (root / "class_names.txt").read_text().split("\n")]
    assert names[1:21] == list(voc.CLASSES[1:])


@pytest.mark.parametrize(
    ("num_classes", "expected"), [(59, [IGNORE, 0, 58, IGNORE]), (60, [0, 1, 59, IGNORE])], ids=["59", "60"]
)
def test_context_has_background_or_not(tmp_path: Path, num_classes: int, expected: list[int]) -> None:
    write(tmp_path, "JPEGImages/a.jpg", "SegmentationClassContext/a.png", [0, 1, 59, 255])
    (tmp_path / "ImageSets" / "SegmentationContext").mkdir(parents=True)
    (tmp_path / "ImageSets" / "SegmentationContext" / "val.txt").write_text("a\n")
    samples = build("voc_context", tmp_path, num_classes=num_classes)
    assert classes(samples) == expected
    assert len(samples.classes) == len(samples.palette) == num_classes
    assert samples.classes[expected[1]] == "aeroplane"
    assert samples.classes[-1] == "wood"


def test_coco_stuff_has_171_classes_and_its_values_skip_what_was_never_drawn() -> None:
    assert len(set(coco_stuff.CLASSES)) == len(coco_stuff.RAW_VALUES) == len(set(coco_stuff.TRAIN_IDS.palette)) == 171
    # Pairs of the table that mmsegmentation's converter holds.
    published: Mapping[int, int] = {
        0: 0,
        10: 10,
        12: 11,
        26: 24,
        30: 26,
        45: 40,
        66: 60,
        69: 61,
        71: 62,
        83: 73,
        91: 80,
    }
    assert {value: coco_stuff.RAW_VALUES.index(value) for value in published} == published
    assert coco_stuff.RAW_VALUES[-1] == 181
    assert (coco_stuff.CLASSES[79], coco_stuff.CLASSES[80]) == ("toothbrush", "banner")


@pytest.mark.parametrize("folder", ["stuffthingmaps", "annotations"])
def test_coco_stuff_reads_both_kinds_of_masks(tmp_path: Path, folder: str) -> None:
    picture = "images/val2017/000000000139.jpg"
    write(tmp_path, picture, "annotations/val2017/000000000139_labelTrainIds.png", [0, 170, 255])
    write(tmp_path, picture, f"{folder}/val2017/000000000139.png", [0, 181, 255])
    assert classes(build("coco_stuff", tmp_path)) == [0, 170, IGNORE]
    raw = build("coco_stuff", tmp_path, labels="raw")
    assert classes(raw) == [0, 170, IGNORE]
    assert raw.audit() == []


def test_a_category_that_coco_never_drew_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path, "images/val2017/1.jpg", "stuffthingmaps/val2017/1.png", [11])
    (tmp_path / "annotations" / "val2017").mkdir(parents=True)
    with pytest.raises(DataError, match="values without a class: 11"):
        build("coco_stuff", tmp_path, labels="raw")[0, 0]


@pytest.mark.parametrize("name", ["cityscapes", "voc", "voc_context", "coco_stuff"])
@pytest.mark.parametrize("root", [None, "nowhere"])
def test_missing_data_shows_the_layout(name: str, root: str | None) -> None:
    with pytest.raises(DataError, match=r"expected") as caught:
        DATA.create(name, {"root": root}).build("val")
    assert ("nowhere" if root else "needs data.root=ROOT") in str(caught.value)

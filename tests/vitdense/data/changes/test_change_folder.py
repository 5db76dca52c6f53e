"""`change_folder`: LEVIR-CD's layouts, lists, masks of two classes or several, and every fault named by its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from vitdense.contracts import DATA, Split
from vitdense.data.audit import Audit, survey
from vitdense.data.changes.change_folder import ChangeSamples
from vitdense.errors import DataError

FOLDERS = ("A", "B", "label")
SIZE = (40, 48)


def save(path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def write(above: Path, names: tuple[str, ...] = ("p0", "p1", "p2"), suffix: str = ".png") -> None:
    """Pairs of noise below A and B, masks of 0 and 255 below label."""
    rng = np.random.default_rng(0)
    for name in names:
        for folder in ("A", "B"):
            save(above / folder / f"{name}{suffix}", rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8))
        save(above / "label" / f"{name}.png", (rng.random(SIZE) > 0.7).astype(np.uint8) * 255)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val", "test"):
        write(tmp_path / split)
    return tmp_path


def build(root: Path, split: Split = "val", **options: object) -> ChangeSamples:
    samples = DATA.create("change_folder", {"root": str(root), "crop": 32, **options}).build(split)
    assert isinstance(samples, ChangeSamples)
    return samples


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_validation_keeps_the_pictures_and_reads_255_as_changed(root: Path) -> None:
    samples = build(root)
    sample = samples[0, 1]
    assert sample["id"] == "p1"
    assert sample["image"].shape == (3, 2, *SIZE)
    for place, folder in enumerate(("A", "B")):
        assert torch.equal(sample["image"][:, place], pixels(root / "val" / folder / "p1.png"))
    stored = np.array(Image.open(root / "val" / "label" / "p1.png"))
    assert torch.equal(sample["mask"], torch.from_numpy((stored == 255).astype(np.int16)))
    assert samples.classes == ("unchanged", "changed")
    assert samples.audit() == []


def test_training_gives_crops_that_depend_on_epoch_and_index(root: Path) -> None:
    samples = build(root, "train", quarter_turns=True, swap=True)
    sample = samples[0, 1]
    assert sample["image"].shape == (3, 2, 32, 32)
    assert sample["mask"].shape == (32, 32)
    assert torch.equal(sample["image"], samples[0, 1]["image"])
    assert not torch.equal(sample["image"], samples[1, 1]["image"])


def test_colours_may_be_shared(root: Path) -> None:
    for folder in ("A", "B"):
        for name in ("p0", "p1", "p2"):
            save(root / "train" / folder / f"{name}.png", np.full((*SIZE, 3), 90, np.uint8))
    shared, own = (build(root, "train", photometry=kind) for kind in ("shared", "independent"))
    both = [[samples[epoch, 0]["image"] for epoch in range(6)] for samples in (shared, own)]
    assert all(torch.equal(each[:, 0], each[:, 1]) for each in both[0])
    assert not all(torch.equal(each[:, 0], each[:, 1]) for each in both[1])


def test_another_split_is_a_matter_of_its_name(root: Path) -> None:
    write(root / "test", ("q9",))
    assert [pair.id for pair in build(root, val="test").pairs] == ["p0", "p1", "p2", "q9"]


def test_other_names_of_folders(root: Path) -> None:
    for old, new in zip(FOLDERS, ("im1", "im2", "gt"), strict=True):
        (root / "val" / old).rename(root / "val" / new)
    assert len(build(root, before="im1", after="im2", label="gt")) == 3


@pytest.mark.parametrize("line", ["{}", "{}.png", "A/{}.png B/{}.png label/{}.png"])
def test_lists_hold_names_or_paths(line: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "train.txt").write_text("\n".join(line.replace("{}", name) for name in ("p2", "p0")) + "\n")
    (tmp_path / "list" / "val.txt").write_text(line.replace("{}", "p1") + "\n")
    train, val = build(tmp_path, "train"), build(tmp_path)
    assert [pair.image.name for pair in train.pairs] == ["p2.png", "p0.png"]
    assert train.audit() == val.audit() == []
    assert torch.equal(val[0, 0]["image"][:, 1], pixels(tmp_path / "B" / "p1.png"))


def test_listed_jpegs_have_masks_in_png(tmp_path: Path) -> None:
    write(tmp_path, ("p.0",), ".jpg")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "val.txt").write_text("p.0.jpg\n")
    assert build(tmp_path)[0, 0]["id"] == "p.0"


def test_a_list_of_pairs_alone_is_told(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "val.txt").write_text("p0\nA/p1.png B/p1.png\n")
    with pytest.raises(DataError, match=r"val\.txt: 'A/p1\.png B/p1\.png' is neither a name nor three paths; expected"):
        build(tmp_path)


def test_what_a_list_names_and_is_not_there_is_told(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "val.txt").write_text("p0\np1\n")
    for folder in ("B", "label"):
        (tmp_path / folder / "p1.png").unlink()
    assert build(tmp_path).audit() == [
        f"{tmp_path}/A/p1.png: no mask {tmp_path}/label/p1.png",
        f"{tmp_path}/A/p1.png: no second picture {tmp_path}/B/p1.png",
    ]


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("A", ["{val}/label/p1.png: no picture {val}/A/p1.*", "{val}/B/p1.png: no picture {val}/A/p1.*"]),
        ("B", ["{val}/A/p1.png: no second picture {val}/B/p1.png"]),
        ("label", ["{val}/A/p1.png: no mask {val}/label/p1.png"]),
    ],
)
def test_a_pair_without_one_of_its_files_is_told(gone: str, told: list[str], root: Path) -> None:
    val = root / "val"
    (val / gone / "p1.png").unlink()
    assert build(root).audit() == [each.replace("{val}", str(val)) for each in told]


@pytest.mark.parametrize(("folder", "what"), [("B", "second picture"), ("label", "mask")])
def test_another_size_names_both(folder: str, what: str, root: Path) -> None:
    path = root / "val" / folder / "p1.png"
    save(path, np.zeros((48, 40) if folder == "label" else (48, 40, 3), np.uint8))
    told = f"{path}: the {what} is 40 x 48, but {root}/val/A/p1.png is 48 x 40 pixels"
    assert build(root).audit(limit=0) == [told]
    with pytest.raises(DataError) as caught:
        build(root)[0, 1]
    assert str(caught.value) == told


def test_a_damaged_second_picture_is_told(root: Path) -> None:
    path = root / "val" / "B" / "p1.png"
    path.write_bytes(path.read_bytes()[:600])
    (fault,) = build(root).audit()
    assert fault.startswith(str(path))


def test_an_unexpected_value_names_file_and_values(root: Path) -> None:
    path = root / "val" / "label" / "p1.png"
    values = np.zeros(SIZE, np.uint8)
    values[3, 4:6] = (7, 128)
    save(path, values)
    told = f"{path}: values without a class: 7, 128; allowed: 0, 255"
    assert build(root).audit() == [told]
    with pytest.raises(DataError) as caught:
        build(root)[0, 1]
    assert str(caught.value) == told


def test_values_and_ignored_pixels_are_the_recipes(root: Path) -> None:
    values = np.ones(SIZE, np.uint8)
    values[0] = 9
    for number in range(3):
        save(root / "val" / "label" / f"p{number}.png", values)
    mask = build(root, values=[0, 1], ignore_index=9)[0, 0]["mask"]
    assert (mask[0] == -1).all()
    assert (mask[1:] == 1).all()


def test_kinds_of_change_have_masks_of_several_classes(root: Path) -> None:
    for number in range(3):
        save(root / "val" / "label" / f"p{number}.png", np.full(SIZE, number, np.uint8))
    samples = build(root, classes=["same", "built", "felled"])
    assert all((samples[0, index]["mask"] == index).all() for index in range(3))
    assert samples.audit() == []
    assert len(set(samples.palette)) == 3


def test_the_audit_counts_both_classes(root: Path) -> None:
    audit = survey(build(root))
    assert isinstance(audit, Audit)
    assert (audit.total, audit.read) == (3, 3)
    assert (audit.pixels > 0).tolist() == [False, True, True]


@pytest.mark.parametrize("gone", FOLDERS)
def test_a_missing_folder_shows_the_layout(gone: str, root: Path) -> None:
    (root / "val" / gone).rename(root / "elsewhere")
    with pytest.raises(DataError, match=rf"val/{gone}: no such folder; expected one of"):
        build(root)


def test_a_missing_split_or_root_is_told(root: Path) -> None:
    with pytest.raises(DataError, match=r"neither a folder .*/dev nor a list .*list/dev\.txt"):
        build(root, val="dev")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        build(root / "nowhere")
    with pytest.raises(DataError, match=r"needs data\.root=ROOT"):
        DATA.create("change_folder").build("val")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"classes": ["a", "a"]}, "different names"),
        ({"classes": ["a"]}, "at least 2"),
        ({"values": [0]}, "a different one for each of 2 classes"),
        ({"values": [0, 70000]}, r"0\.\.65535"),
        ({"ignore_index": 255}, r"ignore_index \[255\] are values of classes"),
        ({"crop": [32, 48], "quarter_turns": True}, "square crop"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DATA.create("change_folder", options)

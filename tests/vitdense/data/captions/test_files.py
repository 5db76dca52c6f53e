"""Captions in lists and folders: every format gives the same records, cuts don't depend on order, faults are named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitdense.contracts import Samples
from vitdense.data.captions.lengths import ListedSamples
from vitdense.errors import DataError

from .conftest import build, write_pictures

Make = Callable[..., Path]
SAID = {"p0.jpg": ["a cat", "the cat"], "p1.jpg": ["a dog, wet"], "p2.jpg": ["two birds"]}

FORMATS = {
    "train.csv": 'image,caption\np0.jpg,a cat\np0.jpg,the cat\np1.jpg,"a dog, wet"\np2.jpg,two birds\n',
    "wide.csv": 'file_name,caption_1,caption_2\np0.jpg,a cat,the cat\np1.jpg,"a dog, wet",\np2.jpg,two birds,\n',
    "train.tsv": "filepath\ttitle\np0.jpg\ta cat\np0.jpg\tthe cat\np1.jpg\ta dog, wet\np2.jpg\ttwo birds\n",
    "train.jsonl": "\n".join(json.dumps({"image": name, "text": said}) for name, said in SAID.items()),
    "train.json": json.dumps([{"file_name": name, "captions": said} for name, said in SAID.items()]),
    "coco.json": json.dumps(
        {
            "images": [{"id": 7 + number, "file_name": name} for number, name in enumerate(SAID)],
            "annotations": [
                {"id": 1, "image_id": 7 + number, "caption": text}
                for number, said in enumerate(SAID.values())
                for text in said
            ],
        }
    ),
}


def said(samples: Samples) -> dict[str, list[str]]:
    found = [samples[0, index] for index in range(len(samples))]
    return {sample["id"]: sample["captions"] for sample in found}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_captions(name: str, make_list: Make) -> None:
    root = make_list(FORMATS[name], name)
    samples = build("captions", "val", root=str(root), val=name)
    assert said(samples) == SAID
    assert samples.audit() == []


def test_training_draws_one_caption_by_seed_epoch_and_index(make_list: Make) -> None:
    root = make_list(FORMATS["train.json"], "train.json")
    samples = build("captions", root=str(root), train="train.json")
    drawn = [samples[epoch, 0]["captions"] for epoch in range(20)]
    assert {len(captions) for captions in drawn} == {1}
    assert {captions[0] for captions in drawn} == set(SAID["p0.jpg"])
    assert drawn == [samples[epoch, 0]["captions"] for epoch in range(20)]
    other = build("captions", root=str(root), train="train.json", seed=1)
    assert drawn != [other[epoch, 0]["captions"] for epoch in range(20)]


def rows(names: list[str]) -> str:
    return "image,caption\n" + "".join(f"{name},of {name}\n" for name in names)


@pytest.mark.parametrize("rule", [{"val_share": 0.3}, {"val_every": 4}])
def test_a_cut_does_not_depend_on_the_order_of_the_list(rule: dict[str, object], tmp_path: Path) -> None:
    names = [f"x{number}.jpg" for number in range(200)]
    sides = []
    for listed in (names, names[::-1], names[50:]):
        (tmp_path / "train.csv").write_text(rows(listed))
        found = []
        for split in ("train", "val"):
            samples = build("captions", split, root=str(tmp_path), train="train.csv", **rule)
            assert isinstance(samples, ListedSamples)
            found.append({entry.id for entry in samples.entries})
        assert not found[0] & found[1]
        assert found[0] | found[1] == set(listed)
        sides.append(found[1])
    assert sides[0] == sides[1]
    assert sides[2] == sides[0] & set(names[50:])
    assert 0.5 < len(sides[0]) / (200 * (0.3 if "val_share" in rule else 0.25)) < 1.5


BAD = {
    "an empty caption": ("p1.jpg,\n", "train.csv:3: 'p1.jpg': the caption is empty"),
    "blanks alone": ("p1.jpg,   \n", "the caption is empty"),
    "a missing picture": ("gone.jpg,a dog\n", "gone.jpg: no such file"),
    "no picture": (",a dog\n", "train.csv:3: image is empty"),
    "a comma too many": (
        "p1.jpg,a dog, wet\n",
        "train.csv:3: 3 cells, the header has 2; a caption with a comma stands",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_named_and_the_others_are_used(case: str, make_list: Make) -> None:
    line, told = BAD[case]
    root = make_list("image,caption\np0.jpg,a cat\n" + line + "p2.jpg,two birds\n")
    samples = build("captions", root=str(root), train="train.csv")
    faults = samples.audit()
    assert len(faults) == 1
    assert told in faults[0]
    assert samples[0, 0]["captions"] == ["a cat"]
    assert samples[0, len(samples) - 1]["captions"] == ["two birds"]


def test_bytes_that_are_no_utf8_spoil_one_record(make_list: Make) -> None:
    root = make_list(b"image,caption\np0.jpg,caf\xe9\np1.jpg,caf\xc3\xa9\n")
    samples = build("captions", root=str(root), train="train.csv")
    assert [fault.split("train.csv")[1] for fault in samples.audit()] == [
        ":2: 'p0.jpg': the caption is not UTF-8: b'caf\\xe9'"
    ]
    assert said(samples) == {"p1.jpg": ["café"]}


def test_ten_thousand_words_are_a_caption(make_list: Make) -> None:
    root = make_list("image,caption\np0.jpg," + "word " * 10_000 + "\np1.jpg,a dog\np2.jpg,a dog\n")
    samples = build("captions", "val", root=str(root), val="train.csv")
    assert isinstance(samples, ListedSamples)
    facts = samples.survey().to_json()
    assert facts["faults"] == []
    assert facts["words"] == {"least": 2, "median": 2.0, "most": 10_000}
    assert (facts["pictures"], facts["captions"], facts["long_captions"], facts["repeated_captions"]) == (3, 3, 1, 1)


def test_a_damaged_picture_is_named_before_the_first_step_and_when_it_is_read(make_list: Make) -> None:
    root = make_list(FORMATS["train.csv"])
    (root / "images" / "p1.jpg").write_bytes(b"no picture")
    samples = build("captions", root=str(root), train="train.csv")
    assert "p1.jpg: not a picture" in samples.audit(limit=1)[0]
    with pytest.raises(DataError, match=r"p1\.jpg: not a picture"):
        samples[0, 1]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("train.csv", "", "the file is empty"),
        ("train.csv", "a,b\n1,2\n", "no column for pictures: looked for image, file_name.*its columns: 'a', 'b'"),
        ("train.csv", "image,b\n1,2\n", "no column for captions.*Set data.caption_key"),
        ("train.csv", 'image,caption\np0.jpg,"' + "x" * 200_000, "train.csv:2: field larger.*quotation mark"),
        ("train.csv", "image,caption\n", "no picture has a caption: there is none"),
        ("train.json", "[1, 2", "no JSON"),
        ("train.json", '{"a": 1}', "expected a list of objects, or COCO's"),
        ("train.txt", "x", "expected one of .csv, .tsv, .jsonl, .json"),
    ],
)
def test_a_file_as_a_whole_is_told_once(name: str, text: str, told: str, make_list: Make) -> None:
    root = make_list(text, name)
    with pytest.raises(DataError, match=told):
        build("captions", root=str(root), train=name)


def test_coco_names_unknown_and_silent_pictures(make_list: Make) -> None:
    content = json.loads(FORMATS["coco.json"])
    content["annotations"][-1]["image_id"] = 99
    samples = build("captions", root=str(make_list(json.dumps(content), "coco.json")), train="coco.json")
    faults = samples.audit()
    assert "annotations[3]: image_id = 99 is the id of no picture" in faults[0]
    assert "p2.jpg (id 9): no annotation is of it" in faults[1]


def test_a_list_without_validation_says_what_to_set(make_list: Make) -> None:
    root = make_list(FORMATS["train.csv"])
    with pytest.raises(DataError, match=r"set data\.val, data\.val_share or data\.val_every"):
        build("captions", "val", root=str(root), train="train.csv")
    with pytest.raises(DataError, match=r"needs data\.train=FILE; expected"):
        build("captions", root=str(root))


def test_real_pictures_and_captions(shared_data: Path) -> None:
    samples = build("captions", "val", root=str(shared_data / "flickr8k_captions"), val="captions.json")
    assert isinstance(samples, ListedSamples)
    assert len(samples) == 400
    assert {len(entry.captions) for entry in samples.entries} == {5}
    assert samples.audit(limit=4) == []
    assert samples[0, 3]["image"].shape == (3, 16, 16)


class TestFolder:
    def test_a_caption_a_line(self, tmp_path: Path) -> None:
        write_pictures(tmp_path / "val", 2)
        (tmp_path / "val" / "p0.txt").write_text("a cat\n\nthe cat\n")
        (tmp_path / "val" / "p1.txt").write_text("a dog")
        samples = build("caption_folder", "val", root=str(tmp_path))
        assert said(samples) == {"p0.jpg": ["a cat", "the cat"], "p1.jpg": ["a dog"]}
        assert samples.audit() == []

    def test_faults_name_the_file(self, tmp_path: Path) -> None:
        write_pictures(tmp_path / "train", 4)
        (tmp_path / "train" / "p0.txt").write_text("a cat")
        (tmp_path / "train" / "p1.txt").write_text("\n \n")
        (tmp_path / "train" / "p2.txt").write_bytes(b"a dog\ncaf\xe9")
        samples = build("caption_folder", root=str(tmp_path))
        faults = sorted(fault.split("/train/")[1] for fault in samples.audit())
        assert faults == [
            "p1.txt: the caption is empty",
            "p2.txt:2: the caption is not UTF-8: b'caf\\xe9'",
            "p3.jpg: no p3.txt beside it",
        ]
        assert said(samples) == {"p0.jpg": ["a cat"], "p2.jpg": ["a dog"]}

    def test_one_folder_is_cut(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, 20)
        for number in range(20):
            (tmp_path / f"p{number}.txt").write_text("x")
        sides = [build("caption_folder", split, root=str(tmp_path), val_every=3) for split in ("train", "val")]
        assert sorted(np.concatenate([list(said(side)) for side in sides])) == sorted(f"p{n}.jpg" for n in range(20))

    def test_a_missing_folder_shows_the_layout(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"train: no such folder; expected"):
            build("caption_folder", root=str(tmp_path))

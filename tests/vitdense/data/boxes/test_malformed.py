"""Broken annotation files: a clear error, a fault that names the record, or a defined result; never a traceback."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vitdense.contracts import DATA
from vitdense.data.boxes.samples import BoxSamples
from vitdense.errors import DataError

Make = Callable[..., Path]
Content = dict[str, Any]
Change = Callable[[Content], object]


def thing(**changes: object) -> Change:
    return lambda content: content["annotations"][1].update(changes)


def picture(**changes: object) -> Change:
    return lambda content: content["images"][1].update(changes)


def without(part: str, index: int, key: str) -> Change:
    def change(content: Content) -> None:
        del content[part][index][key]

    return change


def with_value(key: str, value: object) -> Change:
    return lambda content: content.__setitem__(key, value)


def as_corners(content: Content) -> None:
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        each["bbox"] = [x + 14, y + 15, x + 14 + width, y + 15 + height]


def runs(size: list[int], counts: object) -> Change:
    return thing(iscrowd=1, segmentation={"size": size, "counts": counts})


# What makes the file as a whole useless.
ERRORS: dict[str, tuple[Change, str]] = {
    "not JSON": (lambda content: "{'images': [", "instances_train.json: not readable as JSON"),
    "empty file": (lambda content: "", "not readable as JSON"),
    "cut off": (lambda content: json.dumps(content)[:200], "not readable as JSON"),
    "nested without end": (lambda content: "[" * 200_000, "not readable as JSON"),
    "a number of 9,999 digits": (
        lambda content: json.dumps(content).replace('"width": 60', '"width": ' + "9" * 9999),
        "not readable as JSON",
    ),
    "a list": (lambda content: json.dumps([content]), "expected COCO's object"),
    "no pictures": (with_value("images", []), "'images' is empty"),
    "images missing": (lambda content: content.pop("images"), "'images' must be a list, given nothing"),
    "annotations missing": (lambda content: content.pop("annotations"), "'annotations' must be a list"),
    "annotations an object": (with_value("annotations", {}), "'annotations' must be a list, given dict"),
    "categories missing": (lambda content: content.pop("categories"), "'categories' must be a list"),
    "categories empty": (with_value("categories", []), "'categories' is empty"),
    "category without a name": (without("categories", 0, "name"), r"categories\[0\]: name = None"),
    "category without an id": (without("categories", 2, "id"), r"categories\[2\]: id = None"),
    "category with a text as id": (
        lambda content: content["categories"][0].update(id="7"),
        r"categories\[0\]: id = '7'; expected a whole number",
    ),
    "category no object": (with_value("categories", ["dog"]), r"categories\[0\]: expected an object, given 'dog'"),
    "category ids twice": (lambda content: content["categories"].append({"id": 3, "name": "cow"}), r"\[3\]: id = 3"),
    "category names twice": (lambda content: content["categories"].append({"id": 4, "name": "cat"}), r"\[3\]: id = 4"),
    "category of 65 bits": (lambda content: content["categories"][0].update(id=2**65), "a number of 66 bits"),
    "no usable picture": (
        lambda content: [each.pop("file_name") for each in content["images"]],
        r"no picture can be used: .*images\[0\]",
    ),
}

# What makes one record useless.
PLACE = r"instances_train.json: annotations\[1\] \(id 2\): "
FAULTS: dict[str, tuple[Change, str]] = {
    "no annotations": (with_value("annotations", []), "'annotations' is empty"),
    "box of no width": (thing(bbox=[5, 5, 0, 9]), PLACE + r"bbox = \[5, 5, 0, 9\]: the box is 0 x 9"),
    "box of negative height": (thing(bbox=[5, 5, 4, -9]), PLACE + ".*the box is 4 x -9"),
    "box outside": (thing(bbox=[61, 5, 4, 9]), PLACE + r".*x 61..65, y 5..14 in a picture of 60 x 40"),
    "box far outside": (thing(bbox=[-1e9, 5, 4, 9]), PLACE + ".*in a picture of 60 x 40"),
    "NaN in a box": (thing(bbox=[float("nan"), 5, 4, 9]), PLACE + ".*nan; expected a finite number"),
    "infinity in a box": (thing(bbox=[1, 5, float("inf"), 9]), PLACE + ".*inf; expected a finite number"),
    "huge number in a box": (thing(bbox=[1, 5, 10**400, 9]), PLACE + ".*a number of 1329 bits"),
    "text in a box": (thing(bbox=[1, 5, "4", 9]), PLACE + ".*'4'; expected a finite number"),
    "null in a box": (thing(bbox=[1, 5, None, 9]), PLACE + ".*None"),
    "box of three": (thing(bbox=[1, 5, 4]), PLACE + r"bbox = \[1, 5, 4\]; expected \[x, y, width, height\]"),
    "no box": (without("annotations", 1, "bbox"), PLACE + "bbox = None"),
    "corners for sizes": (as_corners, r"boxes seem to be \[x0, y0, x1, y1\]"),
    "no category": (without("annotations", 1, "category_id"), PLACE + "category_id = None"),
    "unknown category": (thing(category_id=4), PLACE + "category_id = 4: no such category; allowed: 3, 7, 90"),
    "category as text": (thing(category_id="7"), PLACE + "category_id = '7'"),
    "unknown picture": (thing(image_id=99), PLACE + "image_id = 99: no picture of 'images' has this id"),
    "picture id as text": (thing(image_id="10"), PLACE + "image_id = '10'"),
    "annotation ids twice": (thing(id=1), r"annotations\[1\] \(id 1\): another annotation has this id"),
    "annotation id as text": (thing(id="one"), r"annotations\[1\] \(id 'one'\): id = 'one'"),
    "annotation no object": (lambda content: content["annotations"].append(5), r"annotations\[6\]: expected an object"),
    "iscrowd of 2": (thing(iscrowd=2), PLACE + "iscrowd = 2; allowed: 0, 1"),
    "area a NaN": (thing(area=float("nan")), PLACE + "area = nan"),
    "area below 0": (thing(area=-3), PLACE + "area = -3"),
    "polygon of two points": (thing(segmentation=[[1, 2, 3, 4]]), PLACE + "segmentation: polygon 0 has 4 numbers"),
    "polygon of 3.5 points": (thing(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), PLACE + ".*polygon 0 has 7 numbers"),
    "polygon with text": (thing(segmentation=[[1, 2, 3, 4, 5, "x"]]), PLACE + ".*holds what is no number"),
    "polygon with NaN": (thing(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), PLACE + ".*leaves the 60 x 40 picture"),
    "polygon with huge numbers": (thing(segmentation=[[1, 2, 3, 4, 5, 1e12]]), PLACE + ".*leaves the 60 x 40 picture"),
    "outline a number": (thing(segmentation=5), PLACE + "segmentation: expected polygons or run lengths, given int"),
    "runs of another size": (
        runs([60, 40], [2400]),
        PLACE + r".*run lengths of size \[60, 40\] in a picture of \[40, 60\]",
    ),
    "runs too short": (runs([40, 60], [100, 50]), PLACE + ".*make 150 pixels, the 60 x 40 picture has 2,400"),
    "runs too long": (runs([40, 60], [100, 2**33]), PLACE + ".*pixels, the 60 x 40 picture has 2,400"),
    "runs below 0": (runs([40, 60], [2500, -100]), PLACE + ".*whole numbers of 0 or more"),
    "runs of text": (runs([40, 60], "not run lengths"), PLACE + ".*damaged"),
    "runs cut off": (runs([40, 60], "PPY1`"), PLACE + ".*damaged"),
    "runs of one endless number": (runs([40, 60], "o" * 50 + "0"), PLACE + ".*too long"),
    "runs without counts": (thing(segmentation={"size": [40, 60]}), PLACE + ".*'counts' must be"),
    "picture without a name": (without("images", 1, "file_name"), r"images\[1\] \(id 11\): file_name = None"),
    "picture without an id": (without("images", 1, "id"), r"images\[1\]: id = None"),
    "picture id no number": (picture(id="eleven"), r"images\[1\] \(id 'eleven'\): id = 'eleven'"),
    "picture ids twice": (picture(id=10), r"images\[1\] \(id 10\): images\[0\] has this id already"),
    "file names twice": (picture(file_name="p0.png"), "'p0.png' belongs to another picture too"),
    "file not there": (picture(file_name="gone.png"), r"images\[1\] \(id 11\): .*gone.png: no such file"),
    "file name that climbs": (picture(file_name="../val/p1.png"), "leaves "),
    "file name from the root": (picture(file_name="/etc/p1.png"), "leaves "),
    "file name with a 0 byte": (picture(file_name="p\0.png"), r"file_name = 'p\\x00.png'"),
    "wrong size": (picture(width=70), r"images\[1\] \(id 11\): the record says 70 x 40, .*p1.png is 60 x 40 pixels"),
    "sides exchanged": (picture(width=40, height=60), "the record says 40 x 60"),
    "width of 0": (picture(width=0), r"images\[1\] \(id 11\): width = 0; expected a whole number of 1 or more"),
    "height as text": (picture(height="40"), r"images\[1\] \(id 11\): height = '40'"),
    "width missing": (without("images", 1, "width"), r"images\[1\] \(id 11\): width = None"),
    "width of 10^9": (picture(width=10**9), r"images\[1\] \(id 11\): .* pixels; at most"),
    "picture no object": (lambda content: content["images"].append("p3.png"), r"images\[3\]: expected an object"),
}

# What may look odd and means something.
RESULTS: dict[str, tuple[Change, int]] = {
    "whole numbers as 7.0": (thing(category_id=3.0, image_id=10.0), 6),
    "no id": (without("annotations", 1, "id"), 6),
    "no area": (without("annotations", 1, "area"), 6),
    "no iscrowd": (without("annotations", 1, "iscrowd"), 6),
    "no outline": (without("annotations", 1, "segmentation"), 6),
    "an empty outline": (thing(segmentation=[]), 6),
    "iscrowd true": (thing(iscrowd=True), 5),
    "a box beyond the rim": (thing(bbox=[50, 30, 12, 11.5]), 6),
    "no width and height": (lambda content: [content["images"][1].pop(key) for key in ("width", "height")], 6),
    "members that nobody knows": (with_value("licenses", 5), 6),
    "annotations in any order": (lambda content: content["annotations"].reverse(), 6),
}


def built(name: str, root: Path) -> BoxSamples:
    samples = DATA.create(name, {"root": str(root)}).build("train")
    assert isinstance(samples, BoxSamples)
    return samples


def read_all(samples: BoxSamples) -> None:
    for index in range(len(samples)):
        with suppress(DataError):  # any other error is a failure
            samples[0, index]


def test_there_are_enough_cases() -> None:
    assert len(ERRORS) + len(FAULTS) + len(RESULTS) + len(VOC_FAULTS) + len(YOLO_ERRORS) + len(YOLO_FAULTS) >= 100


@pytest.mark.parametrize("case", ERRORS)
def test_a_useless_file_of_coco_is_an_error(make_coco: Make, case: str) -> None:
    change, told = ERRORS[case]
    with pytest.raises(DataError, match=told) as caught:
        built("coco", make_coco(change))
    assert "instances_train.json" in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("case", FAULTS)
def test_a_bad_record_of_coco_is_named_by_the_audit(make_coco: Make, case: str) -> None:
    change, told = FAULTS[case]
    samples = built("coco", make_coco(change))
    faults = samples.audit()
    assert any(re.search(told, fault) for fault in faults), faults
    assert len(faults) <= 4  # a picture that is lost leaves its three things without one
    assert all(len(fault) < 600 for fault in faults)
    read_all(samples)


@pytest.mark.parametrize("case", RESULTS)
def test_what_means_something_is_read(make_coco: Make, case: str) -> None:
    change, count = RESULTS[case]
    samples = built("coco", make_coco(change))
    assert samples.audit() == []
    assert int(samples.survey().things.sum()) == count
    read_all(samples)


def of_voc(**changes: object) -> str:
    values: dict[str, object] = {"name": "dog", "x0": 7, "y0": 6, "x1": 18, "y1": 15, "difficult": 0, **changes}
    corners = "".join(f"<{tag}>{values[key]}</{tag}>" for tag, key in CORNERS if values[key] is not None)
    told = f"<name>{values['name']}</name><difficult>{values['difficult']}</difficult>"
    return f"<object>{told}<bndbox>{corners}</bndbox></object>"


CORNERS = (("xmin", "x0"), ("ymin", "y0"), ("xmax", "x1"), ("ymax", "y1"))
SIZE = "<size><width>{}</width><height>{}</height></size>"
OBJECT = r"p0.xml: object 0: "
VOC_FAULTS: dict[str, tuple[str, str]] = {
    "not XML": ("not XML", "p0.xml: not readable as XML"),
    "cut off": ("<annotation><size>", "p0.xml: not readable as XML"),
    "another root": ("<annotations/>".replace("annotations", "annotation-list"), "expected <annotation>"),
    "entities": ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>", "document types aren't read"),
    "an encoding that nobody knows": ("<?xml version='1.0' encoding='klingon'?><annotation/>", "not readable as XML"),
    "unknown class": (of_voc(name="wolf"), OBJECT + "name = 'wolf'; allowed: aeroplane"),
    "no name": (of_voc(name=""), OBJECT + "name = ''"),
    "difficult of 2": (of_voc(difficult=2), OBJECT + "difficult = '2'"),
    "no box": ("<object><name>dog</name></object>", OBJECT + "dog: no <bndbox>"),
    "no xmax": (of_voc(x1=None), OBJECT + "xmax = None"),
    "text for a number": (of_voc(x1="wide"), OBJECT + "xmax = 'wide'"),
    "NaN": (of_voc(x1="nan"), OBJECT + "xmax = 'nan'"),
    "infinity": (of_voc(x1="1e999"), OBJECT + "xmax = '1e999'"),
    "corners exchanged": (of_voc(x0=18, x1=7), OBJECT + "dog: corners 18, 6 and 7, 15"),
    "outside": (of_voc(x0=70, x1=80), OBJECT + "x 69..80"),
    "size of 0": (f"<annotation>{SIZE.format(0, 0)}</annotation>", "p0.xml: size = 0 x 0"),
    "size a text": (f"<annotation>{SIZE.format('a', 40)}</annotation>", "p0.xml: width = 'a'"),
    "size without a height": ("<annotation><size><width>60</width></size></annotation>", "p0.xml: height = None"),
    "another size": (f"<annotation>{SIZE.format(61, 40)}</annotation>", "p0.xml: the record says 61 x 40"),
}
YOLO_ERRORS: dict[str, tuple[str, str]] = {
    "no names": ("nc: 2\n", "names = None"),
    "names a number": ("names: 2\n", "names = 2"),
    "names empty": ("names: []\n", r"names = \[\]"),
    "names twice": ("names: [dog, dog]\n", "two classes have one name"),
    "a class of -1": ("names: {-1: dog}\n", "names = {-1: 'dog'}"),
    "a class by text": ("names: {a: dog}\n", "names = {'a': 'dog'}"),
    "not YAML": ("names: [dog\n", "data.yaml: while parsing"),
    "code": ("names: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    "a list": ("- dog\n", "expected a mapping with 'names'"),
    "no such folder": ("names: [dog]\ntrain: nowhere\n", "train = nowhere: no such folder"),
    "splits of numbers": ("names: [dog]\ntrain: 5\n", "train = 5"),
    "an empty split": ("names: [dog]\ntrain: labels/train\n", "no pictures in the split 'train'"),
}
LINE = "p0.txt:1: "
YOLO_FAULTS: dict[str, tuple[str, str]] = {
    "three numbers": ("0 0.5 0.5\n", LINE + "3 numbers; expected class and cx cy width height"),
    "six numbers": ("0 0.5 0.5 0.1 0.1 0.9\n", LINE + "6 numbers"),
    "a text": ("dog 0.5 0.5 0.1 0.1\n", LINE + "'dog' is no finite number"),
    "NaN": ("0 nan 0.5 0.1 0.1\n", LINE + "'nan' is no finite number"),
    "infinity": ("0 0.5 0.5 inf 0.1\n", LINE + "'inf' is no finite number"),
    "unknown class": ("5 0.5 0.5 0.1 0.1\n", LINE + "class = '5'; allowed: 0, 1"),
    "half a class": ("0.5 0.5 0.5 0.1 0.1\n", LINE + "class = '0.5'; allowed: 0, 1"),
    "pixels": ("0 30 20 10 10\n", LINE + ".*shares of the picture lie in 0..1"),
    "no width": ("0 0.5 0.5 0 0.1\n", LINE + "the box is 0 x 4"),
    "negative width": ("0 0.5 0.5 -0.1 0.1\n", LINE + r"width and height = -0.1, 0.1"),
    "commas": ("0,0.5,0.5,0.1,0.1\n", LINE + "1 numbers|is no finite number"),
    "not text": ("\udcff\udcfe", "p0.txt: "),
}


@pytest.mark.parametrize("case", VOC_FAULTS)
def test_a_bad_record_of_voc_is_named_by_the_audit(make_voc: Make, case: str) -> None:
    text, told = VOC_FAULTS[case]
    samples = built("voc_boxes", make_voc(text))
    (fault,) = samples.audit()
    assert re.search(told, fault), fault


@pytest.mark.parametrize("case", YOLO_ERRORS)
def test_a_useless_file_of_yolo_is_an_error(make_yolo: Make, case: str) -> None:
    text, told = YOLO_ERRORS[case]
    with pytest.raises(DataError, match=told):
        built("yolo", make_yolo(names=text))


@pytest.mark.parametrize("case", YOLO_FAULTS)
def test_a_bad_line_of_yolo_is_named_by_the_audit(make_yolo: Make, case: str) -> None:
    text, told = YOLO_FAULTS[case]
    root = make_yolo()
    (root / "labels" / "train" / "p0.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    (fault,) = built("yolo", root).audit()
    assert re.search(told, fault), fault

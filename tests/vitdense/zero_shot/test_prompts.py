"""Prompts by name, from files and lists, and what is said where they are wrong."""

import json
from pathlib import Path

import open_clip
import pytest

from vitdense.errors import DataError, UserError
from vitdense.zero_shot.prompts import ClassName, class_names, read_prompts


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("imagenet", open_clip.OPENAI_IMAGENET_TEMPLATES), ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES)],
)
def test_named_prompts_are_open_clips(name: str, theirs: tuple[object, ...]) -> None:
    found = read_prompts(name).of(class_names("tabby cat,dog"))
    assert found == [[template(word) for template in theirs] for word in ("tabby cat", "dog")]  # type: ignore[operator]


def test_plain_and_own_templates() -> None:
    assert read_prompts("plain").of(class_names(["cat"])) == [["a photo of a cat."]]
    assert read_prompts("the {}, {x}").of(class_names(["cat"])) == [["the cat, {x}"]]
    assert read_prompts(["a {}", "the {}"]).templates == ("a {}", "the {}")


def test_an_unknown_name_tells_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean 'imagenet'.*a template with \{\}"):
        read_prompts("imagnet")


@pytest.mark.parametrize("given", [["a photo"], ["a {}", "none"]])
def test_a_template_without_place_is_an_error(given: list[str]) -> None:
    with pytest.raises(UserError, match=r"has no \{\} for the class name"):
        read_prompts(given)


def test_no_template_is_an_error() -> None:
    with pytest.raises(UserError, match="no templates"):
        read_prompts([])


def test_files_of_lines_and_lists(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a {}\n\n  the {}\n")
    (tmp_path / "mine.json").write_text('["a {}", "the {}"]')
    assert [read_prompts(str(tmp_path / f"mine.{kind}")).templates for kind in ("txt", "json")] == [
        ("a {}", "the {}")
    ] * 2


def test_sets_by_name_bring_their_classes(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"Faces": {"classes": [["happy", "smiling"], ["sad"]], "templates": ["a {} face"]}}))
    found = read_prompts(f"{path}:Faces")
    assert found.classes == (ClassName("happy", ("happy", "smiling")), ClassName("sad", ("sad",)))
    assert found.of(found.classes) == [["a happy face", "a smiling face"], ["a sad face"]]
    with pytest.raises(UserError, match="did you mean 'Faces'"):
        read_prompts(f"{path}:Face")
    with pytest.raises(UserError, match=r"holds sets of prompts by name: choose one as .*prompts\.json:Faces"):
        read_prompts(str(path))


def test_all_of_clips_sets_are_read(shared_data: Path) -> None:
    path = shared_data / "clip_prompts" / "prompts.json"
    sets = json.loads(path.read_text())
    assert len(sets) == 26
    for name, theirs in sets.items():
        found = read_prompts(f"{path}:{name}")
        assert (len(found.classes), len(found.templates)) == (len(theirs["classes"]), len(theirs["templates"]))


def test_imagenets_two_missiles_stay_apart(shared_data: Path) -> None:
    found = read_prompts(str(shared_data / "clip_prompts" / "imagenet_prompts.json"))
    missiles = [each for each in found.classes if each.name.startswith("missile")]
    assert [each.name for each in missiles] == ["missile", "missile (2)"]
    assert {each.words for each in missiles} == {("missile",)}
    assert len({each.name for each in found.classes}) == 1000
    assert found.templates == read_prompts("imagenet").templates


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("3", "expected a list of templates or an object"),
        ('{"templates": []}', "'templates' must be a list of texts"),
        ('{"templates": ["a {}"], "classes": [3]}', "3 is no class name"),
        ('{"templates": ["a {}"], "classes": "cat"}', "'classes' must be a list"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(str(tmp_path / "bad.json"))
    assert "bad.json" in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt: no such file"):
        read_prompts("nowhere.txt")


def test_class_names_from_lists_and_files(tmp_path: Path) -> None:
    expected = (ClassName("cat", ("cat",)), ClassName("fire_truck", ("fire engine", "fire truck")))
    (tmp_path / "names.txt").write_text("cat\nfire_truck=fire engine|fire truck\n")
    (tmp_path / "names.json").write_text('["cat", "fire_truck=fire engine|fire truck"]')
    for given in ("cat, fire_truck=fire engine|fire truck", *(str(tmp_path / f"names.{k}") for k in ("txt", "json"))):
        assert class_names(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "no class names in the list: expected one or more"),
        (" , ", "no class names"),
        ([], "no class names"),
        ("cat,dog,cat", "class names stand twice in the list: 'cat'; name each once"),
        (["cat", ""], "'' is no class name"),
    ],
)
def test_bad_class_names_are_told(given: str | list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_names(given)

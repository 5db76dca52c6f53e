"""What is said of classes: templates and class names by name, from files, lists and folders (CLIP's prompts,
https://arxiv.org/abs/2103.00020)."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdense.errors import DataError, UserError
from vitdense.registry import nearest

PLAIN = ("a photo of a {}.",)
NAMES = ("imagenet", "simple", "plain")
FORMS = (
    "expected one of "
    + ", ".join(NAMES)
    + ", a .txt file with one template a line, a .json file, FILE.json:SET, or a template with {}"
)


@dataclass(frozen=True)
class ClassName:
    """The name that results bear, and the words that stand for it in prompts."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Prompts:
    """Templates, each with {} where a class name goes, and the class names that came with them, if any."""

    name: str
    templates: tuple[str, ...]
    classes: tuple[ClassName, ...] = ()

    def of(self, classes: Sequence[ClassName]) -> list[list[str]]:
        """All prompts of each class."""
        return [[fill(template, words) for words in each.words for template in self.templates] for each in classes]


def fill(template: str, words: str) -> str:
    """A template with a class in it; other braces stay as they are."""
    return template.replace("{}", words)


def read_prompts(given: str | Sequence[str]) -> Prompts:
    """Prompts by name, from a file, or from templates; UserError names what is near or allowed.

    Named are open_clip's "imagenet" (80 templates) and "simple" (7), and "plain". A .txt file has one template a line.
    A .json file is a list of templates, an object with `templates` and perhaps `classes`, as in CLIP's
    imagenet_prompts.json, or an object of such by name, one of which FILE.json:SET takes.
    """
    if not isinstance(given, str):
        return _checked(Prompts("given", tuple(given)))
    if given in ("imagenet", "simple"):
        return Prompts(given, _of_open_clip(given))
    if given == "plain":
        return Prompts(given, PLAIN)
    if "{}" in given:
        return _checked(Prompts("given", (given,)))
    file, colon, chosen = given.rpartition(":")
    if colon and file.endswith(".json"):
        return _checked(_read_json(Path(file), chosen))
    path = Path(given)
    if path.suffix == ".json":
        return _checked(_read_json(path, None))
    if path.suffix == ".txt":
        return _checked(Prompts(path.stem, tuple(_lines(path))))
    raise UserError(f"no prompts named {given!r}{nearest(given, NAMES)}; {FORMS}")


def class_names(given: str | Sequence[str]) -> tuple[ClassName, ...]:
    """Class names from a list, a "cat,dog" of them, or a file: .json, or one a line; DataError where it can't be read.
    "imagenet" is the thousand as open_clip words them, in the order of their numbers, which folders' names have too.

    A class may be "name=words" or "name=words|other words" where prompts say other words than results. UserError where
    none is given, or one twice.
    """
    if given == "imagenet":
        from open_clip import IMAGENET_CLASSNAMES

        return _told_apart([ClassName(each, (each,)) for each in IMAGENET_CLASSNAMES])
    if isinstance(given, str):
        path = Path(given)
        if path.suffix == ".json":
            return checked_classes([_class_name(each, given) for each in _list_of(path)], given)
        given = _lines(path) if path.suffix == ".txt" else [part for part in given.split(",") if part.strip()]
    return checked_classes([_class_name(each, "the list") for each in given], "the list")


def checked_classes(classes: Sequence[ClassName], where: str) -> tuple[ClassName, ...]:
    """The same; UserError where there is none, or one twice."""
    if not classes:
        raise UserError(f"no class names in {where}: expected one or more, such as cat,dog")
    for each in classes:
        for text in (each.name, *each.words):
            if fault := _fault(text):
                raise UserError(f"a class name in {where} {fault}")
    twice = [name for name, count in Counter(each.name for each in classes).items() if count > 1]
    if twice:
        raise UserError(f"class names stand twice in {where}: {', '.join(map(repr, twice[:5]))}; name each once")
    return tuple(classes)


def _fault(text: str) -> str | None:
    """Why this is no text to be encoded, None where it is one."""
    # Imported here: it comes with all readers of data, and backbones alone are to stay light.
    from vitdense.data.captions.rows import text_fault

    return text_fault(text)


def _checked(prompts: Prompts) -> Prompts:
    if not prompts.templates:
        raise UserError(f"no templates in prompts {prompts.name!r}: expected one or more, such as {PLAIN[0]!r}")
    for template in prompts.templates:
        if fault := _fault(template):
            raise UserError(f"a template of prompts {prompts.name!r} {fault}")
        if "{}" not in template:
            raise UserError(f"template {template!r} of prompts {prompts.name!r} has no {{}} for the class name")
    return prompts


def _of_open_clip(name: str) -> tuple[str, ...]:
    """open_clip keeps functions from a class name to a text."""
    import open_clip

    made = open_clip.OPENAI_IMAGENET_TEMPLATES if name == "imagenet" else open_clip.SIMPLE_IMAGENET_TEMPLATES
    return tuple(template("{}") for template in made)


def _read_json(path: Path, chosen: str | None) -> Prompts:
    found = _json(path)
    if isinstance(found, list):
        found = {"templates": found}
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a list of templates or an object, got {type(found).__name__}")
    if "imagenet_templates" in found:
        found = {key.removeprefix("imagenet_"): value for key, value in found.items()}
    if chosen is None and "templates" not in found:
        raise UserError(f"{path} holds sets of prompts by name: choose one as {path}:{next(iter(found), 'SET')}")
    if chosen is not None:
        if chosen not in found:
            raise UserError(f"no prompts {chosen!r} in {path}{nearest(chosen, found)}; there are: {', '.join(found)}")
        found = found[chosen]
        found = {"templates": found} if isinstance(found, list) else found
        if not isinstance(found, dict):
            raise DataError(f"{path}: expected {chosen!r} to hold templates, got {type(found).__name__}")
    templates: Any = found.get("templates")
    classes = found.get("classes", [])
    if not _is_texts(templates):
        raise DataError(f"{path}: 'templates' must be a list of texts")
    if not isinstance(classes, list):
        raise DataError(f"{path}: 'classes' must be a list of names")
    named = [_class_name(each, str(path)) for each in classes]
    apart = checked_classes(_told_apart(named), str(path)) if named else ()
    return Prompts(chosen or path.stem, tuple(templates), apart)


def _told_apart(classes: Sequence[ClassName]) -> tuple[ClassName, ...]:
    """ImageNet has two kinds of missiles and of sunglasses: the second bears a number in results."""
    seen: Counter[str] = Counter()
    apart = []
    for each in classes:
        seen[each.name] += 1
        number = seen[each.name]
        apart.append(each if number == 1 else ClassName(f"{each.name} ({number})", each.words))
    return tuple(apart)


def _class_name(given: object, where: str) -> ClassName:
    """A text, "name=words|words", or a list of words of which the first is the name."""
    if isinstance(given, str) and given.strip():
        name, equals, words = given.strip().partition("=")
        return ClassName(name.strip(), tuple(word.strip() for word in words.split("|")) if equals else (name,))
    if isinstance(given, list | tuple) and _is_texts(given):
        return ClassName(given[0], tuple(given))
    raise UserError(f"{where}: {given!r} is no class name; expected a text, or a list of texts that mean the same")


def _is_texts(given: Any) -> bool:
    return isinstance(given, list | tuple) and len(given) > 0 and all(isinstance(each, str) for each in given)


def _list_of(path: Path) -> list[object]:
    found = _json(path)
    if isinstance(found, dict):
        found = found.get("classes", found.get("imagenet_classes"))
    if not isinstance(found, list):
        raise DataError(f"{path}: expected a list of class names, or an object with 'classes'")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as fault:
        raise DataError(f"{path}: no JSON ({fault})") from None


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{path}: can't be read ({fault})") from None

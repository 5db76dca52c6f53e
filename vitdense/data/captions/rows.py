"""Rows of tables and lists that name pictures: csv, tsv, jsonl and json, each row with its place in the file."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitdense.data.boxes.records import Fault, short
from vitdense.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")


class Row(NamedTuple):
    """What a row holds by the names of its columns, and its place in the file."""

    where: str
    values: dict[str, Any]


def read_rows(path: Path) -> Iterator[Row | Fault]:
    """The rows of a file by its suffix, or what is wrong with one; DataError where the file as a whole can't be read.

    Bytes that are no UTF-8 become lone surrogates, which `text_fault` tells: one bad record spoils no other.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: expected one of {', '.join(SUFFIXES)}")
    text = _text(path)
    if suffix in (".csv", ".tsv"):
        return _table(path, text, suffix)
    return _lines(path, text) if suffix == ".jsonl" else _entries(path, text)


def text_fault(text: object) -> str | None:
    """Why a value is no caption or name, None where it is one."""
    if not isinstance(text, str):
        return "is missing" if text is None else f"is {short(text)}; expected a text"
    if not text.strip():
        return "is empty"
    try:
        text.encode()
    except UnicodeEncodeError:
        return (
            f"is not UTF-8: {short(text.encode(errors='surrogateescape'))}" if _bytes(text) else "is no valid Unicode"
        )
    return None


def choose_column(path: Path, given: str | None, known: Sequence[str], columns: Sequence[str], what: str) -> str:
    """The column that was asked for, else the first one known; DataError lists the columns."""
    wanted = known if given is None else (given,)
    found = next((name for name in wanted if name in columns), None)
    if found is None:
        listed = ", ".join(map(short, columns)) or "none"
        option = "image_key" if what == "pictures" else "caption_key" if what == "captions" else f"{what}_key"
        raise DataError(
            f"{path}: no column for {what}: looked for {', '.join(wanted)}; its columns: {listed}. Set data.{option}"
        )
    return found


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as fault:
        reason = "no such file" if isinstance(fault, FileNotFoundError) else str(fault)
        raise DataError(f"{path}: {reason}") from None
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8")
    return content.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")


def _bytes(text: str) -> bool:
    """Whether all that keeps a text from being UTF-8 are bytes of its file."""
    return all(not 0xD800 <= ord(letter) <= 0xDFFF or 0xDC80 <= ord(letter) <= 0xDCFF for letter in text)


def _table(path: Path, text: str, suffix: str) -> Iterator[Row | Fault]:
    """A tsv has no quoting, as the field's published ones: a quotation mark is part of a caption."""
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines) if suffix == ".csv" else csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    header: list[str] | None = None
    try:
        for cells in reader:
            if header is None:
                header = [cell.strip() for cell in cells]
            elif len(cells) == len(header):
                yield Row(f"{path}:{reader.line_num}", dict(zip(header, cells, strict=True)))
            elif cells:
                told = f"{len(cells)} cells, the header has {len(header)}"
                hint = "; a caption with a comma stands in quotation marks" if suffix == ".csv" else ""
                yield Fault("rows of another length", f"{path}:{reader.line_num}: {told}{hint}")
    except csv.Error as fault:
        raise DataError(f"{path}:{reader.line_num}: {fault}; is a quotation mark not closed?") from None
    if header is None:
        raise DataError(f"{path}: the file is empty")


def _lines(path: Path, text: str) -> Iterator[Row | Fault]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as fault:
            yield Fault("lines that are no JSON", f"{where}: {fault}")
            continue
        yield _object(where, found)


def _object(where: str, found: object) -> Row | Fault:
    if isinstance(found, dict):
        return Row(where, found)
    return Fault("entries of another kind", f"{where}: expected an object, given {short(found)}")


def _entries(path: Path, text: str) -> Iterator[Row | Fault]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{path}: no JSON: {fault}") from None
    if isinstance(found, list):
        return (_object(f"{path}[{place}]", entry) for place, entry in enumerate(found))
    if isinstance(found, dict) and isinstance(found.get("images"), list) and isinstance(found.get("annotations"), list):
        return _coco(path, found["images"], found["annotations"])
    keys = ", ".join(map(short, found)) if isinstance(found, dict) else short(found)
    raise DataError(f"{path}: expected a list of objects, or COCO's 'images' and 'annotations'; given {keys}")


def _coco(path: Path, images: list[Any], annotations: list[Any]) -> Iterator[Row | Fault]:
    """A row for each annotation; a picture without one is a fault."""
    names: dict[Any, str] = {}
    for place, image in enumerate(images):
        where = f"{path}: images[{place}]"
        if (
            not isinstance(image, dict)
            or not isinstance(image.get("id"), int | str)
            or text_fault(image.get("file_name"))
        ):
            yield Fault("bad pictures", f"{where}: expected 'id' and 'file_name', given {short(image)}")
        elif image["id"] in names:
            yield Fault("ids that come twice", f"{where}: id {short(image['id'])} is {names[image['id']]} too")
        else:
            names[image["id"]] = image["file_name"]
    silent = dict(names)
    for place, entry in enumerate(annotations):
        where = f"{path}: annotations[{place}]"
        number = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(number, int | str) or number not in names:
            yield Fault("unknown pictures", f"{where}: image_id = {short(number)} is the id of no picture")
            continue
        silent.pop(number, None)
        yield Row(where, {"file_name": names[number], "caption": entry.get("caption")})
    for number, name in silent.items():
        yield Fault("pictures without captions", f"{path}: {name} (id {short(number)}): no annotation is of it")

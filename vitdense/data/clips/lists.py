"""Lists of videos and their classes: tables with columns, and lines of a path and a class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitdense.data.boxes.records import Fault, short
from vitdense.data.captions.rows import Row, choose_column, read_rows, text_fault
from vitdense.data.classes.class_folder import LABEL_KEYS
from vitdense.errors import DataError

PATH_KEYS = ("path", "file", "video", "file_name", "filename", "filepath", "video_path", "clip")
START_KEYS, END_KEYS = ("start_frame", "start"), ("end_frame", "end")


class Entry(NamedTuple):
    """A video, the name of its class, and the frames [start, end) that it is about."""

    id: str
    path: Path
    label: str
    start: int = 0
    end: int | None = None


def read_list(
    path: Path, root: Path, path_key: str | None, label_key: str | None, names: Sequence[str] | None
) -> tuple[list[Entry], list[str], list[Fault]]:
    """The videos of a file, the names of its classes, and what can't be used; DataError where the file can't be read.

    Classes are names, or numbers of `names` where these are given. Paths are below `root`.
    """
    rows = _lines(path) if path.suffix.lower() == ".txt" else _table(path, path_key, label_key)
    entries: list[Entry] = []
    faults: list[Fault] = []
    for row in rows:
        if isinstance(row, Fault):
            faults.append(row)
            continue
        made = _entry(row, root, names)
        if isinstance(made, Fault):
            faults.append(made)
        else:
            entries.append(made)
    return entries, sorted({entry.label for entry in entries}), faults


def _lines(path: Path) -> list[Row | Fault]:
    """ "a/b.mp4 3" or "a/b.mp4,3" on each line, as mmaction2's and VideoMAE's lists."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{path}: {fault}") from None
    rows: list[Row | Fault] = []
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{path}:{number}"
        parts = line.rsplit("," if "," in line else None, 1)
        if len(parts) == 2:
            rows.append(Row(where, {"path": parts[0].strip(), "label": parts[1].strip()}))
        elif line.strip():
            rows.append(Fault("bad rows", f"{where}: expected a path and a class, given {short(line)}"))
    return rows


def _table(path: Path, path_key: str | None, label_key: str | None) -> list[Row | Fault]:
    """Rows with the columns path and label, and start and end where there are such."""
    columns: dict[str, str] = {}
    rows: list[Row | Fault] = []
    for row in read_rows(path):
        if isinstance(row, Fault):
            rows.append(row)
            continue
        if not columns:
            listed = list(row.values)
            columns["path"] = choose_column(path, path_key, PATH_KEYS, listed, "path")
            columns["label"] = choose_column(path, label_key, LABEL_KEYS, listed, "label")
            for name, keys in (("start", START_KEYS), ("end", END_KEYS)):
                found = next((key for key in keys if key in listed), None)
                columns |= {} if found is None else {name: found}
        rows.append(Row(row.where, {name: row.values.get(column) for name, column in columns.items()}))
    return rows


def _entry(row: Row, root: Path, names: Sequence[str] | None) -> Entry | Fault:
    label = row.values["label"]
    label = str(label) if isinstance(label, int) and not isinstance(label, bool) else label
    for column, value in (("path", row.values["path"]), ("label", label)):
        wrong = text_fault(value)
        if wrong is not None:
            return Fault("bad rows", f"{row.where}: {column} {wrong}")
    name, label = str(row.values["path"]).strip(), str(label).strip()
    if names is not None and label not in names:
        if not label.isdecimal() or int(label) >= len(names):
            return Fault("bad rows", f"{row.where}: class {short(label)} is none of the {len(names)} that are named")
        label = names[int(label)]
    start, end = (_number(row.values.get(key)) for key in ("start", "end"))
    if isinstance(start, str) or isinstance(end, str) or (end is not None and end <= (start or 0)):
        given = f"start {short(row.values.get('start'))}, end {short(row.values.get('end'))}"
        return Fault("bad rows", f"{row.where}: expected frame numbers, the end behind the start, given {given}")
    frames = "" if start is None and end is None else f"#{start or 0}-{'' if end is None else end}"
    return Entry(name + frames, root / name, label, start or 0, end)


def _number(value: Any) -> int | str | None:
    """A frame number, None where there is none, and what is none as text."""
    if value is None or value == "":
        return None
    text = str(value).strip()
    return int(text) if text.isdecimal() else text

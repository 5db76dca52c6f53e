"""`class_folder`: pictures with one class each, named by their folder or by a table."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vitdense.contracts import DATA, Sample, Samples, Split
from vitdense.data.boxes.records import Fault, short
from vitdense.data.captions.files import IMAGE_KEYS, Cut, find_pictures
from vitdense.data.captions.rows import choose_column, read_rows, text_fault
from vitdense.data.captions.views import Picture, PictureDataConfig
from vitdense.data.classes.audit import ClassAudit, audit_classes
from vitdense.errors import DataError

LABEL_KEYS = ("label", "class", "class_name", "category")
LAYOUT = """expected
  ROOT/train/CLASS/x.jpg, ROOT/val/CLASS/x.jpg (or test)
  or ROOT/CLASS/x.jpg                  all of it for both splits, or cut by data.val_share or data.val_every
  or ROOT/train.csv, ROOT/val.csv      columns path and label, set by data.train=train.csv data.val=val.csv"""

Named = tuple[str, Path, str]
"""(id, picture, name of its class)."""


@DATA.register("class_folder")
class ClassFolderConfig(PictureDataConfig, Cut):
    """`train` and `val` are folders of folders, or tables (csv, tsv, jsonl, json), below `root`; classes are the sorted
    names in `train`, or in `val` where there is no `train`.
    """

    train: str | None = None
    val: str | None = None
    image_key: str | None = None
    label_key: str | None = None

    def build(self, split: Split) -> "ClassSamples":
        """The samples of a split; raises DataError where it has none, or where classes can't be told apart."""
        if self.root is None:
            raise DataError(f"data 'class_folder' needs data.root=ROOT; {LAYOUT}")
        place = self._place(split)
        named, classes, faults = self._read(place)
        known = self._classes(split, place, classes)
        if self.cuts and self.val is None:
            named = [each for each in named if self.belongs(each[0], split)]
        strange = sorted({name for _, _, name in named} - set(known))
        if strange:
            told = ", ".join(map(short, strange[:5]))
            raise DataError(f"{place}: classes that the training split does not have: {told}")
        if not named:
            raise DataError(f"{place}: no pictures in the split {split!r}; {LAYOUT}")
        return ClassSamples(self, split, known, named, faults)

    def _place(self, split: Split) -> Path:
        """The folder or table of a split; ROOT itself where it has no folders of splits."""
        root, given = Path(str(self.root)), self.train if split == "train" else self.val
        if split == "val" and given is None and self.cuts:
            return self._place("train")
        if given is not None:
            place = root / given
            if not place.exists():
                raise DataError(f"{place}: no such folder or table; {LAYOUT}")
            return place
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; {LAYOUT}")
        if not any((root / name).is_dir() for name in ("train", "val", "test")):
            return root
        found = [
            root / name for name in (("train",) if split == "train" else ("val", "test")) if (root / name).is_dir()
        ]
        if not found:
            raise DataError(f"{root}: no folder of the split {split!r}; {LAYOUT}")
        return found[0]

    def _classes(self, split: Split, place: Path, found: Sequence[str]) -> tuple[str, ...]:
        """The sorted names of the training split, which decide; of this one where that is missing."""
        names: Sequence[str] = found
        if split == "val":
            try:
                decides = self._place("train")
            except DataError:
                decides = place
            if decides != place:
                names = self._read(decides)[1]
        if not names:
            raise DataError(f"{place}: no classes; {LAYOUT}")
        check_distinct(place, names)
        return tuple(sorted(names))

    def _read(self, place: Path) -> tuple[list[Named], list[str], list[Fault]]:
        """Pictures, the names of all classes, and faults."""
        return self._table(place) if place.is_file() else _folders(place)

    def _table(self, path: Path) -> tuple[list[Named], list[str], list[Fault]]:
        named: list[Named] = []
        faults: list[Fault] = []
        columns: tuple[str, str] | None = None
        for row in read_rows(path):
            if isinstance(row, Fault):
                faults.append(row)
                continue
            if columns is None:
                listed = list(row.values)
                image = choose_column(path, self.image_key, IMAGE_KEYS, listed, "pictures")
                columns = image, choose_column(path, self.label_key, LABEL_KEYS, listed, "label")
            values = [row.values.get(column) for column in columns]
            wrong = [
                f"{column} {text_fault(value)}"
                for column, value in zip(columns, values, strict=True)
                if text_fault(value)
            ]
            if wrong:
                faults.append(Fault("bad rows", f"{row.where}: {'; '.join(wrong)}"))
            else:
                name, label = str(values[0]), str(values[1]).strip()
                named.append((name, Path(str(self.root)) / name, label))
        return named, sorted({label for _, _, label in named}), faults


def _folders(folder: Path) -> tuple[list[Named], list[str], list[Fault]]:
    named: list[Named] = []
    faults: list[Fault] = []
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for path in classes:
        pictures = find_pictures(path)
        named += [(each.relative_to(folder).as_posix(), each, path.name) for each in pictures]
        if not pictures:
            faults.append(Fault("empty classes", f"{path}: no pictures of this class"))
    return named, [path.name for path in classes], faults


def check_distinct(place: Path, names: Sequence[str]) -> None:
    """Raises DataError where names of classes are the same but for case and spaces."""
    seen: dict[str, str] = {}
    for name in names:
        plain = "".join(name.casefold().split())
        if plain in seen:
            raise DataError(
                f"{place}: classes {short(seen[plain])} and {short(name)} differ in case or spaces only: they are one"
                " class, or need other names"
            )
        seen[plain] = name


class ClassSamples(Samples):
    """One split: training draws a view by (seed, epoch, index), validation gives the whole picture."""

    palette: tuple[tuple[int, int, int], ...] = ()

    def __init__(
        self,
        config: ClassFolderConfig,
        split: Split,
        classes: tuple[str, ...],
        named: Sequence[Named],
        faults: Sequence[Fault],
    ) -> None:
        self.split, self.seed, self.views, self.classes = split, config.seed, config.views(), classes
        labels = {name: label for label, name in enumerate(classes)}
        self.ids = [name for name, _, _ in named]
        self.files = [(Picture(path), labels[name]) for _, path, name in named]
        self.faults = list(faults)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        picture, label = self.files[key[1]]
        if self.split == "val":
            return Sample(id=self.ids[key[1]], image=self.views.whole(picture), label=label)
        generator = np.random.default_rng([self.seed, *key])
        return Sample(id=self.ids[key[1]], image=self.views.drawn(picture, generator), label=label)

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """Empty classes and bad rows, headers of all pictures, and at most `limit` pictures read in full."""
        return audit_classes(self.classes, self.files, self.faults, limit=limit, report=report).faults

    def survey(self, report: Callable[[str], None] | None = None) -> ClassAudit:
        """The same with counts, of all pictures."""
        return audit_classes(self.classes, self.files, self.faults, limit=None, report=report)

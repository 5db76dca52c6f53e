"""`captions` and `caption_folder`: pictures in files, and their captions in one list or in a text beside each."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PositiveInt, model_validator

from vitdense.contracts import DATA, DataConfig, Split
from vitdense.data import images
from vitdense.data.boxes.records import Fault, short
from vitdense.data.captions.lengths import ListedSamples, SortedConfig
from vitdense.data.captions.rows import Row, choose_column, read_rows, text_fault
from vitdense.data.captions.samples import CaptionSamples, Entry
from vitdense.data.captions.views import Picture
from vitdense.errors import DataError

IMAGE_KEYS = ("image", "file_name", "filename", "filepath", "image_path", "path", "img")
CAPTION_KEYS = ("caption", "captions", "text", "title", "sentence", "sentences", "description")
NUMBERED = re.compile(r"caption[ _]?\d+")

LAYOUT = """expected
  ROOT/train.csv (tsv, jsonl, json)   pictures and captions, set by data.train=train.csv
  ROOT/val.csv                        set by data.val, or cut from train by data.val_share=0.05 or data.val_every=20
  ROOT/images/x.jpg                   or ROOT/x.jpg, or set by data.images"""


class Cut(DataConfig):
    """Validation cut from one list: `val_share` of the pictures, or one of `val_every`. A digest of a picture's name
    decides, so that neither the order of the list nor other pictures move it to the other side.
    """

    val_share: float | None = Field(default=None, gt=0.0, lt=1.0)
    val_every: PositiveInt | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.val_share is not None and self.val_every is not None:
            raise ValueError("val_share and val_every are two rules for the same cut: give one")
        return self

    @property
    def cuts(self) -> bool:
        """Whether there is a rule."""
        return self.val_share is not None or self.val_every is not None

    def belongs(self, name: str, split: Split) -> bool:
        """Whether a picture is of this side of the cut."""
        number = int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "big")
        if self.val_every is not None:
            return (number % self.val_every == 0) == (split == "val")
        return (number < (self.val_share or 0.0) * 2**64) == (split == "val")


class CaptionFilesConfig(SortedConfig, Cut):
    """What both layouts share."""

    def samples(self, entries: Iterable[Entry], faults: Sequence[Fault], split: Split, where: Path) -> CaptionSamples:
        """The samples of what was read; raises DataError where there is none."""
        found = list(entries)
        if not found:
            reasons = "; ".join(fault.text for fault in faults[:3])
            raise DataError(f"{where}: {split}: no picture has a caption: {reasons or 'there is none'}")
        return ListedSamples(self, split, found, faults)


@DATA.register("captions")
class CaptionsConfig(CaptionFilesConfig):
    """`train` and `val` are files below `root`; `image_key` and `caption_key` are their columns, where they have other
    names than usual. Rows of the same picture are its several captions.
    """

    train: str | None = None
    val: str | None = None
    images: str | None = None
    image_key: str | None = None
    caption_key: str | tuple[str, ...] | None = None

    def build(self, split: Split) -> CaptionSamples:
        """The samples of a split; raises DataError that shows the layout where files are missing."""
        if self.train is None and (split == "train" or self.val is None):
            raise DataError(f"data 'captions' needs data.train=FILE; {LAYOUT}")
        if split == "val" and self.val is None and not self.cuts:
            raise DataError(
                f"data 'captions' has no validation: set data.val, data.val_share or data.val_every; {LAYOUT}"
            )
        root = Path(self.root or ".")
        path = root / str(self.val if split == "val" and self.val is not None else self.train)
        captions, faults = gather(path, self.image_key, self.caption_key)
        names = list(captions)
        if self.val is None and self.cuts:
            names = [name for name in names if self.belongs(name, split)]
        folder = self._folder(root, names)
        entries = (Entry(name, Picture(folder / name), tuple(captions[name])) for name in names)
        return self.samples(entries, faults, split, path)

    def _folder(self, root: Path, names: Sequence[str]) -> Path:
        if self.images is not None:
            return root / self.images
        folders = [folder for folder in (root / "images", root) if names and (folder / names[0]).exists()]
        return folders[0] if folders else root / "images" if (root / "images").is_dir() else root


def gather(
    path: Path, image_key: str | None, caption_key: str | tuple[str, ...] | None
) -> tuple[dict[str, list[str]], list[Fault]]:
    """The captions of each picture of a file, in the order of the file, and what can't be used."""
    captions: dict[str, list[str]] = {}
    faults: list[Fault] = []
    columns: tuple[str, tuple[str, ...]] | None = None
    for row in read_rows(path):
        if isinstance(row, Fault):
            faults.append(row)
            continue
        if columns is None:
            columns = _columns(path, list(row.values), image_key, caption_key)
        name, wrong = row.values.get(columns[0]), text_fault(row.values.get(columns[0]))
        if wrong is not None:
            faults.append(Fault("rows without a picture", f"{row.where}: {columns[0]} {wrong}"))
            continue
        assert isinstance(name, str)
        for caption in _captions(row, name, columns[1]):
            if isinstance(caption, Fault):
                faults.append(caption)
            else:
                captions.setdefault(name, []).append(caption)
    return captions, faults


def _columns(
    path: Path, columns: list[str], image_key: str | None, caption_key: str | tuple[str, ...] | None
) -> tuple[str, tuple[str, ...]]:
    image = choose_column(path, image_key, IMAGE_KEYS, columns, "pictures")
    if isinstance(caption_key, tuple):
        return image, tuple(choose_column(path, key, (), columns, "captions") for key in caption_key)
    numbered = tuple(name for name in columns if NUMBERED.fullmatch(name))
    if caption_key is None and numbered:
        return image, numbered
    return image, (choose_column(path, caption_key, CAPTION_KEYS, columns, "captions"),)


def _captions(row: Row, name: str, columns: tuple[str, ...]) -> Iterator[str | Fault]:
    """A row's captions, of lists each; of several columns some may be empty, of one none."""
    found: list[Any] = []
    for column in columns:
        value = row.values.get(column)
        found += value if isinstance(value, list) else [value]
    if len(columns) > 1:
        found = [value for value in found if value not in (None, "")]
    if not found:
        yield Fault("pictures without captions", f"{row.where}: {short(name)}: {', '.join(columns)}: no caption")
    for value in found:
        wrong = text_fault(value)
        if wrong is None:
            yield str(value).strip()
        else:
            yield Fault("bad captions", f"{row.where}: {short(name)}: the caption {wrong}")


FOLDER_LAYOUT = """expected
  ROOT/train/x.jpg, ROOT/train/x.txt   a caption a line; ROOT/val/ alike
  or ROOT/x.jpg, ROOT/x.txt            cut by data.val_share=0.05 or data.val_every=20"""


@DATA.register("caption_folder")
class CaptionFolderConfig(CaptionFilesConfig):
    """Each picture has a text of its stem beside it, with a caption a line."""

    def build(self, split: Split) -> CaptionSamples:
        """The samples of a split; raises DataError that shows the layout where folders are missing."""
        if self.root is None:
            raise DataError(f"data 'caption_folder' needs data.root=ROOT; {FOLDER_LAYOUT}")
        root = Path(self.root)
        folder = root if self.cuts else root / split
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; {FOLDER_LAYOUT}")
        entries, faults = [], []
        for path in find_pictures(folder):
            name = path.relative_to(folder).as_posix()
            if self.cuts and not self.belongs(name, split):
                continue
            captions = list(_beside(path))
            faults += [each for each in captions if isinstance(each, Fault)]
            good = tuple(each for each in captions if not isinstance(each, Fault))
            if good:
                entries.append(Entry(name, Picture(path), good))
        return self.samples(entries, faults, split, folder)


def find_pictures(folder: Path) -> list[Path]:
    """All pictures below a folder, sorted, hidden files left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in images.SUFFIXES)
    return sorted(path for path in found if not path.name.startswith("."))


def _beside(path: Path) -> Iterator[str | Fault]:
    text = path.with_suffix(".txt")
    try:
        content = text.read_bytes()
    except OSError as fault:
        reason = f"no {text.name} beside it" if isinstance(fault, FileNotFoundError) else str(fault)
        yield Fault("pictures without captions", f"{path}: {reason}")
        return
    lines = content.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff").splitlines()
    written = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not written:
        yield Fault("bad captions", f"{text}: the caption is empty")
    for number, line in written:
        wrong = text_fault(line)
        yield line.strip() if wrong is None else Fault("bad captions", f"{text}:{number}: the caption {wrong}")

"""`folder`: your own pictures and masks, in root/images/{train,val}, root/annotations/{train,val} and classes.json."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vitdense.contracts import DATA, Split
from vitdense.data.segmentation import (
    Colour,
    Labels,
    PairedSamples,
    SegmentationDataConfig,
    as_ignored,
    colours,
    make_samples,
)
from vitdense.errors import DataError

LAYOUT = """expected
  ROOT/classes.json                  {"classes": ["road", "car", ...], "ignore_index": 255}
  ROOT/images/{train,val}/x.jpg
  ROOT/annotations/{train,val}/x.png   one class index for each pixel"""


class ClassesFile(BaseModel):
    """What classes.json holds; `palette` has a colour for each class, and may have more for ignored values."""

    model_config = ConfigDict(extra="forbid", strict=True)

    classes: list[str]
    ignore_index: int | list[int] | None = None
    palette: list[list[int]] | None = None


@DATA.register("folder")
class FolderConfig(SegmentationDataConfig):
    """`ignore_index` (a value or several) replaces that of classes.json."""

    ignore_index: int | tuple[int, ...] | None = None

    def build(self, split: Split) -> PairedSamples:
        """The samples of a split; raises DataError where a folder or classes.json is missing."""
        images, masks, labels = self.found(split)
        return make_samples(images, masks, labels, self, split)

    def found(self, split: Split) -> tuple[Path, Path, Labels]:
        """The folders of a split's pictures and masks, and the classes."""
        if self.root is None:
            raise DataError(f"data {self.preset!r} needs data.root=ROOT; {LAYOUT}")
        root = Path(self.root)
        images, masks = root / "images" / split, root / "annotations" / split
        for folder in (images, masks):
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; {LAYOUT}")
        return images, masks, self._labels(root / "classes.json")

    def _labels(self, path: Path) -> Labels:
        try:
            found = ClassesFile.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; {LAYOUT}") from None
        except (ValidationError, UnicodeDecodeError, json.JSONDecodeError) as fault:
            raise DataError(f"{path}: {_first_line(fault)}; {LAYOUT}") from None
        if not found.classes or len(set(found.classes)) != len(found.classes):
            raise DataError(f"{path}: 'classes' must be a list of different names, got {found.classes}")
        chosen = found.ignore_index if self.ignore_index is None else self.ignore_index
        return Labels(tuple(found.classes), _palette(path, found), as_ignored(chosen))


def _palette(path: Path, found: ClassesFile) -> tuple[Colour, ...]:
    count = len(found.classes)
    if found.palette is None:
        return colours(count)
    valid = all(len(colour) == 3 and all(0 <= value <= 255 for value in colour) for colour in found.palette)
    if not valid or len(found.palette) < count:
        raise DataError(f"{path}: 'palette' needs [red, green, blue] in 0..255 for each of the {count} classes")
    return tuple((red, green, blue) for red, green, blue in found.palette[:count])


def _first_line(fault: Exception) -> str:
    if isinstance(fault, ValidationError):
        error = fault.errors()[0]
        return f"{'.'.join(map(str, error['loc'])) or 'file'}: {error['msg']}"
    return str(fault)

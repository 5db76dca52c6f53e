"""`coco`: boxes and masks in COCO's JSON of instances, of COCO itself or of anybody's pictures."""

from pathlib import Path
from typing import ClassVar

from vitdense.contracts import DATA, Split
from vitdense.data.boxes.coco_json import read_categories, read_coco
from vitdense.data.boxes.samples import BoxDataConfig, BoxSamples
from vitdense.errors import DataError

LAYOUT = """expected, unless data.{train,val}_annotations and data.{train,val}_images say otherwise
  ROOT/annotations/instances_{train,val}*.json
  ROOT/{train,val}2017/x.jpg, named as the JSON is, or ROOT/images/{train,val}/x.jpg, or ROOT/images/x.jpg"""


class CocoFilesConfig(BoxDataConfig):
    """Annotation files and folders of pictures are found under `root`, or given, as paths from there.

    Classes are the file's categories by rising id, whatever the ids are.
    """

    kind: ClassVar[str]
    """What the names of annotation files begin with."""
    layout: ClassVar[str]
    train_annotations: str | None = None
    val_annotations: str | None = None
    train_images: str | None = None
    val_images: str | None = None

    def _annotations(self, root: Path, split: Split) -> Path:
        given = self.train_annotations if split == "train" else self.val_annotations
        if given is not None:
            return root / given
        found = sorted((root / "annotations").glob(f"{self.kind}_{split}*.json"))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DataError(f"{root / 'annotations'}: {names}: say which with data.{split}_annotations=annotations/...")
        if not found:
            raise DataError(f"{root / 'annotations'}: no {self.kind}_{split}*.json; {self.layout}")
        return found[0]

    def _images(self, root: Path, split: Split, annotations: Path) -> Path:
        given = self.train_images if split == "train" else self.val_images
        named = annotations.stem.removeprefix(f"{self.kind}_")
        places = [named, f"images/{named}", f"images/{split}", split, "images"] if given is None else [given]
        for place in places:
            if (root / place).is_dir():
                return root / place
        raise DataError(f"{root}: no folder {' or '.join(places)}; {self.layout}")

    def _compare(self, root: Path, split: Split, found: dict[int, str], annotations: Path) -> None:
        """Both splits must mean the same by a number; where there is only one, there is nothing to compare."""
        other: Split = "val" if split == "train" else "train"
        try:
            path = self._annotations(root, other)
        except DataError:
            return
        if not path.exists() or path == annotations:
            return
        theirs = read_categories(path)
        if theirs == found:
            return
        apart = sorted(number for number in found.keys() | theirs.keys() if found.get(number) != theirs.get(number))
        told = "; ".join(f"id {number}: {found.get(number)!r} and {theirs.get(number)!r}" for number in apart[:5])
        more = f"; and {len(apart) - 5} more" if len(apart) > 5 else ""
        raise DataError(f"{annotations} and {path}: categories differ (None: not there): {told}{more}")


@DATA.register("coco")
class CocoConfig(CocoFilesConfig):
    """Boxes, and with `masks` outlines too."""

    kind = "instances"
    layout = LAYOUT
    masks: bool = False

    def build(self, split: Split) -> BoxSamples:
        """The samples of a split; DataError where files are missing, are no JSON, or differ in their categories."""
        if self.root is None:
            raise DataError(f"data 'coco' needs data.root=ROOT; {LAYOUT}")
        root = Path(self.root)
        annotations = self._annotations(root, split)
        records = read_coco(annotations, self._images(root, split, annotations), masks=self.masks)
        self._compare(root, split, dict(zip(records.category_ids, records.classes, strict=True)), annotations)
        return self.samples(records, split, masks=self.masks)

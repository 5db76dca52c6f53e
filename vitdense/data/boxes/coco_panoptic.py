"""`coco_panoptic`: things and stuff in COCO's panoptic form, JSON beside maps whose colours are the ids of segments
(https://cocodataset.org/#format-data), of COCO itself or of anybody's pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.contracts import DATA, Split
from vitdense.data.boxes.audit import BoxAudit
from vitdense.data.boxes.augment import BoxAugment
from vitdense.data.boxes.coco import CocoFilesConfig
from vitdense.data.boxes.coco_json import CocoReader, load_coco, parse_categories
from vitdense.data.boxes.records import BadRecordError, Record, Records, described, number, short, whole
from vitdense.data.boxes.samples import BoxSamples
from vitdense.data.boxes.segments import Area, Segment
from vitdense.data.images import read_image
from vitdense.errors import DataError

LAYOUT = """expected, unless data.{train,val}_annotations, data.{train,val}_images, data.{train,val}_maps say otherwise
  ROOT/annotations/panoptic_{train,val}*.json
  ROOT/annotations/panoptic_{train,val}*/x.png, named as the JSON is
  ROOT/{train,val}2017/x.jpg, or ROOT/images/{train,val}/x.jpg, or ROOT/images/x.jpg"""
_MOST = 255
"""So many segments a picture may have."""


@DATA.register("coco_panoptic")
class CocoPanopticConfig(CocoFilesConfig):
    """Each segment is a target with its mask: every thing, and all stuff of a class; crowds are left out in training.
    `train_maps` and `val_maps` are the folders of the maps, from `root`."""

    kind = "panoptic"
    layout = LAYOUT
    train_maps: str | None = None
    val_maps: str | None = None

    def build(self, split: Split) -> "PanopticSamples":
        """The samples of a split; DataError where files are missing, are no JSON, or differ in their categories."""
        if self.root is None:
            raise DataError(f"data 'coco_panoptic' needs data.root=ROOT; {LAYOUT}")
        root = Path(self.root)
        annotations = self._annotations(root, split)
        found = read_panoptic(annotations, self._images(root, split, annotations), self._maps(root, split, annotations))
        records = found.records
        self._compare(root, split, dict(zip(records.category_ids, records.classes, strict=True)), annotations)
        if not records.records:
            raise DataError(f"{split}: no picture can be used: {'; '.join(each.text for each in records.faults[:3])}")
        found = replace(found, records=replace(records, records=records.records[: self.first]))
        augment = self.augment if split == "train" else None
        return PanopticSamples(found, augment, seed=self.seed, fast_decode=self.fast_decode)

    def _maps(self, root: Path, split: Split, annotations: Path) -> Path:
        given = self.train_maps if split == "train" else self.val_maps
        folder = annotations.with_suffix("") if given is None else root / given
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of maps; {LAYOUT}")
        return folder


@dataclass(frozen=True)
class PanopticRecords:
    """Records whose outlines are in maps: of each picture by its id the map's file and the ids of its segments there;
    for each class whether it is one of things."""

    records: Records
    maps: dict[str, tuple[Path, tuple[int, ...]]]
    things: tuple[bool, ...]


class PanopticSamples(BoxSamples):
    """As of boxes with masks, which share out the picture."""

    def __init__(self, found: PanopticRecords, augment: BoxAugment | None, *, seed: int, fast_decode: bool) -> None:
        super().__init__(found.records, augment, seed=seed, masks=True, fast_decode=fast_decode)
        self.maps, self.things = found.maps, found.things

    def segments_of(self, record: Record) -> Sequence[Segment]:
        """The areas of the picture's segments; DataError where the map says something else than the JSON."""
        path, ids = self.maps[record.id]
        colours = read_image(path).astype(np.int32)
        if colours.shape[:2] != record.size:
            size, wanted = colours.shape[:2], record.size
            raise DataError(f"{path} is {size[1]} x {size[0]} pixels, {record.image} {wanted[1]} x {wanted[0]}")
        painted = colours @ np.array([1, 256, 65536], np.int32)  # (H, W)
        present, places = np.unique(painted, return_inverse=True)
        table = {each: index for index, each in enumerate(ids, start=1)}
        strange = [each for each in present.tolist() if each and each not in table]
        missing = sorted(table.keys() - set(present.tolist()))
        for faulty, told in ((strange, "are in no segments_info"), (missing, "have no pixel")):
            if faulty:
                raise DataError(f"{path}: the segments {described(faulty)} {told}")
        numbers = np.array([table.get(each, 0) for each in present.tolist()], np.uint8)
        indices = numbers[places].reshape(record.size)
        return [Area(indices, index) for index in range(1, len(ids) + 1)]

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """What reading the files found, header sizes of all pictures, and at most `limit` pictures and maps in full."""
        return super().audit(limit=limit, report=report) + self._faults_of_maps(limit)

    def survey(self, report: Callable[[str], None] | None = None) -> BoxAudit:
        """The same with counts, of all pictures and maps."""
        found = super().survey(report)
        found.faults += self._faults_of_maps(None)
        return found

    def _faults_of_maps(self, limit: int | None) -> list[str]:
        total = len(self.records)
        count = total if limit is None else min(limit, total)
        faults = []
        for index in range(count):
            try:
                self.segments_of(self.records[index * total // count])
            except DataError as fault:
                faults.append(str(fault))
        return faults


def read_panoptic(path: Path, images: Path, maps: Path) -> PanopticRecords:
    """The pictures of an annotation file and their segments; DataError where the file as a whole is none."""
    content = load_coco(path)
    categories = parse_categories(path, content["categories"])
    told = {entry["id"]: entry.get("isthing") for entry in content["categories"]}
    unclear = [each for each in categories if told[each] not in (0, 1)]
    if unclear:
        raise DataError(f"{path}: categories {described(unclear)}: isthing = {short(told[unclear[0]])}; allowed: 0, 1")
    reader = _SegmentReader(path, images, tuple(categories), maps)
    reader.read_images(content["images"])
    reader.read_annotations(content["annotations"])
    given = reader.records()
    kept = tuple(record for record in given if record.id in reader.maps)
    numbers = {reader.names[image]: image for image in reader.things}
    records = Records(tuple(categories.values()), kept, tuple(reader.faults), tuple(categories), numbers)
    return PanopticRecords(records, reader.maps, tuple(bool(told[each]) for each in categories))


class _SegmentReader(CocoReader):
    """Gathers the segments of each picture, and where its map is."""

    def __init__(self, path: Path, images: Path, categories: tuple[int, ...], maps: Path) -> None:
        super().__init__(path, images, categories, masks=False)
        self.folder = maps
        self.maps: dict[str, tuple[Path, tuple[int, ...]]] = {}

    def _annotation(self, entry: object) -> None:
        """All segments of one picture."""
        if not isinstance(entry, dict):
            raise BadRecordError("bad annotations", f"expected an object, given {short(entry)}")
        image = whole(entry.get("image_id"), "image_id")
        if image in self._unusable:
            return
        if image not in self.things:
            raise BadRecordError("unknown pictures", f"image_id = {image}: no picture of 'images' has this id")
        name, given = entry.get("file_name"), entry.get("segments_info")
        if not isinstance(name, str) or not name or "/" in name or "\0" in name:
            raise BadRecordError("bad file names", f"file_name = {short(name)}; expected a file in {self.folder}")
        if not isinstance(given, list) or len(given) > _MOST:
            told = f"{len(given)} segments" if isinstance(given, list) else short(given)
            raise BadRecordError("bad segments", f"segments_info = {told}; expected a list of {_MOST} or fewer")
        found = [self._segment_info(each, image) for each in given]
        ids = tuple(each for each, *_ in found)
        if len(set(ids)) < len(ids) or self.names[image] in self.maps:
            raise BadRecordError("ids that come twice", f"segments of image {image} or the image come twice")
        for _, box, label, crowd, area in found:
            self.things[image].add(box, label, crowd=crowd, area=area, segment=None)
        self.maps[self.names[image]] = (self.folder / name, ids)

    def _segment_info(self, entry: Any, image: int) -> tuple[int, tuple[float, float, float, float], int, bool, float]:
        """Its id in the map, box, class, whether it is a crowd, and area."""
        if not isinstance(entry, dict):
            raise BadRecordError("bad segments", f"expected an object, given {short(entry)}")
        own = whole(entry.get("id"), "id", least=1, most=2**24 - 1)
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1) or isinstance(crowd, float):
            raise BadRecordError("bad iscrowd", f"segment {own}: iscrowd = {short(crowd)}; allowed: 0, 1")
        box = self._box(entry, self._sizes[image])
        return own, box, self._label(entry), bool(crowd), number(entry.get("area", 0), "area")

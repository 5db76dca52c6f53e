"""`voc_boxes`: PASCAL VOC's XML of objects."""

from pathlib import Path
from xml.etree import ElementTree

from vitdense.contracts import DATA, Split
from vitdense.data.boxes.records import BadRecordError, Fault, Record, Records, Things, check_box, number, short
from vitdense.data.boxes.samples import BoxDataConfig, BoxSamples
from vitdense.data.boxes.views import Size
from vitdense.data.images import MAX_PIXELS, SUFFIXES, read_size
from vitdense.data.pairs import read_list
from vitdense.data.voc import CLASSES
from vitdense.errors import DataError

LAYOUT = """expected, in ROOT or ROOT/VOCdevkit/VOC2012 or ROOT/VOCdevkit/VOC2007
  JPEGImages/x.jpg
  Annotations/x.xml
  ImageSets/Main/{train,val}.txt   and the lists that data.train_list and data.val_list name"""


@DATA.register("voc_boxes")
class VocBoxesConfig(BoxDataConfig):
    """`classes` are VOC's 20 unless others are given. `difficult` objects are crowds: not learnt from, and ignored
    where they are found. Pixels count from 1 and both corners are inside, so that 1 is taken off the upper left one.
    """

    classes: tuple[str, ...] = CLASSES[1:]
    train_list: str = "train"
    val_list: str = "val"

    def build(self, split: Split) -> BoxSamples:
        """The samples of a split; raises DataError that shows the layout where files are missing."""
        if self.root is None:
            raise DataError(f"data 'voc_boxes' needs data.root=ROOT; {LAYOUT}")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise DataError(f"data.classes must be different names, given {list(self.classes)}")
        root = _root(Path(self.root))
        listed = read_list(
            root / "ImageSets" / "Main" / f"{self.train_list if split == 'train' else self.val_list}.txt", LAYOUT
        )
        records, faults = [], []
        for name in dict.fromkeys(words[0] for words in listed):
            try:
                record, bad = read_voc(root / "Annotations" / f"{name}.xml", _image(root, name), name, self.classes)
            except BadRecordError as fault:
                faults.append(Fault(fault.kind, str(fault)))
            else:
                records.append(record)
                faults += bad
        return self.samples(Records(self.classes, tuple(records), tuple(faults)), split)


def read_voc(path: Path, image: Path, name: str, classes: tuple[str, ...]) -> tuple[Record, list[Fault]]:
    """One annotation file: its record, and the objects that can't be used. BadRecordError where the file can't."""
    tree = _parse(path)
    size = _size(tree, path, image)
    things, faults = Things(), []
    for index, entry in enumerate(tree.iterfind("object")):
        try:
            label, box, difficult = _object(entry, size, classes)
        except BadRecordError as fault:
            faults.append(fault.at(f"{path}: object {index}"))
        else:
            things.add(box, label, crowd=difficult, area=None, segment=None)
    return things.record(name, image, size, str(path)), faults


def _root(given: Path) -> Path:
    for root in (given, given / "VOCdevkit" / "VOC2012", given / "VOCdevkit" / "VOC2007"):
        if (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir():
            return root
    raise DataError(f"{given.absolute()}: no folders JPEGImages and Annotations; {LAYOUT}")


def _image(root: Path, name: str) -> Path:
    """VOC has JPEGs; other people's have others too."""
    places = [root / "JPEGImages" / f"{name}{suffix}" for suffix in (".jpg", *sorted(SUFFIXES - {".jpg"}))]
    return next((place for place in places if place.exists()), places[0])


def _parse(path: Path) -> ElementTree.Element:
    try:
        content = path.read_bytes()
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # nothing of VOC has them, and entities can unfold
            raise BadRecordError("unreadable annotations", f"{path}: document types aren't read")
        tree = ElementTree.fromstring(content)
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as fault:
        if isinstance(fault, BadRecordError):
            raise
        reason = "no such file" if isinstance(fault, FileNotFoundError) else f"not readable as XML: {fault}"
        raise BadRecordError("unreadable annotations", f"{path}: {reason}") from None
    if tree.tag != "annotation":
        raise BadRecordError("unreadable annotations", f"{path}: expected <annotation>, given <{short(tree.tag)}>")
    return tree


def _size(tree: ElementTree.Element, path: Path, image: Path) -> Size:
    """(H, W) as the file says, or as the picture's header does where it says nothing."""
    found = tree.find("size")
    try:
        if found is None:
            return read_size(image)
        height, width = _number(found, "height"), _number(found, "width")
        if min(height, width) < 1 or height % 1 or width % 1 or height * width > MAX_PIXELS:
            raise BadRecordError("bad sizes", f"size = {width:g} x {height:g}; expected whole numbers of 1 or more")
    except BadRecordError as fault:
        raise BadRecordError(fault.kind, f"{path}: {fault}") from None
    except DataError as fault:
        raise BadRecordError("unreadable pictures", f"{path}: no <size>, and {fault}") from None
    return int(height), int(width)


def _object(
    entry: ElementTree.Element, size: Size, classes: tuple[str, ...]
) -> tuple[int, tuple[float, float, float, float], bool]:
    name = (entry.findtext("name") or "").strip()
    if name not in classes:
        known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
        raise BadRecordError("unknown categories", f"name = {short(name)}; allowed: {known}")
    difficult = (entry.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise BadRecordError("bad difficult", f"difficult = {short(difficult)}; allowed: 0, 1")
    corners = entry.find("bndbox")
    if corners is None:
        raise BadRecordError("bad boxes", f"{name}: no <bndbox>")
    x0, y0, x1, y1 = (_number(corners, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    box = x0 - 1, y0 - 1, x1, y1
    if x1 < x0 or y1 < y0:
        raise BadRecordError("boxes of negative size", f"{name}: corners {x0:g}, {y0:g} and {x1:g}, {y1:g}")
    check_box(box, size)
    return classes.index(name), box, difficult == "1"


def _number(parent: ElementTree.Element, tag: str) -> float:
    text = parent.findtext(tag)
    try:
        return number(float(text or ""), tag)
    except ValueError:  # BadRecordError is one too
        raise BadRecordError(f"bad {tag}", f"{tag} = {short(text)}; expected a finite number") from None

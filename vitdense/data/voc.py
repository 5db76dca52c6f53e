"""`voc`: 20 classes and background of PASCAL VOC 2012; `voc_context`: 59 or 60 classes of PASCAL-Context."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from vitdense.contracts import DATA, Split
from vitdense.data import ade20k
from vitdense.data.pairs import Pair, read_list
from vitdense.data.segmentation import Labels, PairedSamples, SegmentationDataConfig, colours, listed_samples
from vitdense.errors import DataError

CLASSES = tuple(
    """
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike,
person, pottedplant, sheep, sofa, train, tvmonitor
""".replace("\n", " ")
    .strip()
    .split(", ")
)
LABELS = Labels(CLASSES, ((0, 0, 0), *colours(20)), ignored=frozenset({255}))

CONTEXT_CLASSES = tuple(
    """
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, table, dog, horse, motorbike, person,
pottedplant, sheep, sofa, train, tvmonitor, bag, bed, bench, book, building, cabinet, ceiling, cloth, computer, cup,
door, fence, floor, flower, food, grass, ground, keyboard, light, mountain, mouse, curtain, platform, sign, plate,
road, rock, shelves, sidewalk, sky, snow, bedclothes, track, tree, truck, wall, water, window, wood
""".replace("\n", " ")
    .strip()
    .split(", ")
)
CONTEXT_LABELS = {
    60: Labels(CONTEXT_CLASSES, ade20k.PALETTE[:60], ignored=frozenset({255})),
    59: Labels(CONTEXT_CLASSES[1:], ade20k.PALETTE[1:60], ignored=frozenset({0, 255}), first=1),
}

LAYOUT = """expected, in ROOT or ROOT/VOCdevkit/VOC2012
  JPEGImages/x.jpg
  SegmentationClass/x.png                 and SegmentationClassAug/x.png for the pictures that SBD adds
  ImageSets/Segmentation/{train,val}.txt  and the lists that data.train_list names, such as trainaug"""

CONTEXT_LAYOUT = """expected, in ROOT or ROOT/VOCdevkit/VOC2010
  JPEGImages/x.jpg
  SegmentationClassContext/x.png                 0 background, 1..59 the classes, as mmsegmentation converts them
  ImageSets/SegmentationContext/{train,val}.txt"""


@DATA.register("voc")
class VocConfig(SegmentationDataConfig):
    """`train_list` names the lists to train on: `trainaug`, or [train, aug], takes the 10,582 pictures with SBD's.

    A root without ImageSets is a sample: both splits are all of SegmentationClass.
    """

    train_list: str | tuple[str, ...] = "train"

    def build(self, split: Split) -> PairedSamples:
        """The samples of a split; raises DataError that shows the layout where files are missing."""
        root = _root(self.root, "voc", "VOC2012", "SegmentationClass", LAYOUT)
        lists = root / "ImageSets"
        if not lists.exists():
            names: Iterable[str] = sorted(path.stem for path in (root / "SegmentationClass").glob("*.png"))
        else:
            chosen = (self.train_list,) if isinstance(self.train_list, str) else self.train_list
            names = _names(lists / "Segmentation", chosen if split == "train" else ("val",), LAYOUT)
        return _samples(root, names, ("SegmentationClass", "SegmentationClassAug"), LABELS, self, split)


@DATA.register("voc_context")
class VocContextConfig(SegmentationDataConfig):
    """With 60 classes background is one of them, with 59 it is no label."""

    num_classes: Literal[59, 60] = 59

    def build(self, split: Split) -> PairedSamples:
        """The samples of a split; raises DataError that shows the layout where files are missing."""
        folder = "SegmentationClassContext"
        root = _root(self.root, "voc_context", "VOC2010", folder, CONTEXT_LAYOUT)
        names = _names(root / "ImageSets" / "SegmentationContext", (split,), CONTEXT_LAYOUT)
        return _samples(root, names, (folder,), CONTEXT_LABELS[self.num_classes], self, split)


def _root(given: str | None, name: str, year: str, masks: str, layout: str) -> Path:
    if given is None:
        raise DataError(f"data {name!r} needs data.root=ROOT; {layout}")
    for root in (Path(given), Path(given) / "VOCdevkit" / year):
        if (root / "JPEGImages").is_dir() and (root / masks).is_dir():
            return root
    raise DataError(f"{Path(given).absolute()}: no folders JPEGImages and {masks}; {layout}")


def _names(folder: Path, lists: Iterable[str], layout: str) -> list[str]:
    """The first word of each line, each name once."""
    lines = [line for name in lists for line in read_list(folder / f"{name}.txt", layout)]
    return list(dict.fromkeys(words[0] for words in lines))


def _samples(
    root: Path,
    names: Iterable[str],
    folders: tuple[str, ...],
    labels: Labels,
    config: SegmentationDataConfig,
    split: Split,
) -> PairedSamples:
    """Masks come from the first folder that has them: VOC's own stand above SBD's, as in mmsegmentation."""
    pairs = []
    for name in names:
        places = [root / folder / f"{name}.png" for folder in folders]
        mask = next((place for place in places if place.exists()), places[0])
        pairs.append(Pair(name, root / "JPEGImages" / f"{name}.jpg", mask))
    if not pairs:
        raise DataError(f"{root}: no picture in the split {split!r}")
    return listed_samples(pairs, labels, config, split)

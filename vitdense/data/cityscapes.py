"""`cityscapes`: 19 classes of street scenes (Cordts et al. 2016, https://arxiv.org/abs/1604.01685), as downloaded."""

from pathlib import Path
from typing import Literal

from vitdense.contracts import DATA, Split
from vitdense.data.segmentation import Colour, Labels, PairedSamples, SegmentationDataConfig, make_samples
from vitdense.errors import DataError

# Train id by row: name, the id that labelIds files hold, colour.
_ROWS: tuple[tuple[str, int, Colour], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CLASSES, _IDS, PALETTE = zip(*_ROWS, strict=True)
_OTHERS = frozenset({*range(34), 255} - {*_IDS})  # a licence plate, id -1, is 255 in eight bits

LABELS = {
    "ids": (Labels(CLASSES, PALETTE, ignored=_OTHERS, values=_IDS), "_gtFine_labelIds.png"),
    "train_ids": (Labels(CLASSES, PALETTE, ignored=frozenset({255})), "_gtFine_labelTrainIds.png"),
}
IMAGES = "_leftImg8bit.png"
LAYOUT = """expected
  ROOT/leftImg8bit/{train,val}/CITY/x_leftImg8bit.png
  ROOT/gtFine/{train,val}/CITY/x_gtFine_labelIds.png         (or x_gtFine_labelTrainIds.png with data.labels=train_ids)
which are leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com, unpacked"""


@DATA.register("cityscapes")
class CityscapesConfig(SegmentationDataConfig):
    """`labels`: the files that come with the download (`ids`), or those that cityscapesScripts makes of them."""

    labels: Literal["ids", "train_ids"] = "ids"

    def build(self, split: Split) -> PairedSamples:
        """The samples of a split; raises DataError that shows the layout where folders are missing."""
        if self.root is None:
            raise DataError(f"data 'cityscapes' needs data.root=ROOT; {LAYOUT}")
        images, masks = (Path(self.root) / part / split for part in ("leftImg8bit", "gtFine"))
        for folder in (images, masks):
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; {LAYOUT}")
        labels, suffix = LABELS[self.labels]
        return make_samples(images, masks, labels, self, split, image_suffix=IMAGES, mask_suffix=suffix)

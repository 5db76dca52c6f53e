"""`change_folder`: pairs of pictures with masks of what changed, in the layout of LEVIR-CD."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vitdense.contracts import DATA, Sample, Split
from vitdense.data.changes.augment import PairAugment
from vitdense.data.changes.pairs import SECOND, ChangePair, Places, listed
from vitdense.data.images import read_image
from vitdense.data.pairs import Pair, size_fault
from vitdense.data.segmentation import Colour, Labels, PairedSamples, SegmentationDataConfig, as_ignored, colours
from vitdense.errors import DataError

LAYOUT = """expected one of
  ROOT/{train,val,test}/{A,B,label}/x.png                       data.train and data.val name the folders
  ROOT/{A,B,label}/x.png, ROOT/list/{train,val,test}.txt        lines of a name, or of three paths below ROOT"""

CLASSES = ("unchanged", "changed")
PALETTE: tuple[Colour, ...] = ((44, 52, 74), (236, 90, 76))


@DATA.register("change_folder")
class ChangeFolderConfig(SegmentationDataConfig):
    """`train` and `val` are folders of `root` or the names of lists, `before`, `after` and `label` folders in them.

    The first of `classes` is no change. `values` are theirs in the masks: 0 and 255 of two classes, else 0, 1, 2, ...;
    pixels of `ignore_index` (a value or several) count for nothing. Training crops are the same for both pictures and
    the mask; `photometry` says whether colours are drawn for each picture, or once for both. `quarter_turns` are for
    pictures from above, `swap` exchanges before and after at random, where the classes don't tell one from the other.
    """

    train: str = "train"
    val: str = "val"
    before: str = "A"
    after: str = "B"
    label: str = "label"
    classes: tuple[str, ...] = Field(default=CLASSES, min_length=2)
    values: tuple[int, ...] | None = None
    ignore_index: int | tuple[int, ...] | None = None
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] = 256
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    category_ratio: float = Field(default=1.0, gt=0, le=1)
    photometry: Literal["independent", "shared"] = "independent"
    quarter_turns: bool = False
    swap: bool = False

    @model_validator(mode="after")
    def _check(self) -> "ChangeFolderConfig":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be different names, got {list(self.classes)}")
        values = self._values()
        if len(values) != len(self.classes) or len(set(values)) != len(values):
            raise ValueError(f"values: a different one for each of {len(self.classes)} classes, got {list(values)}")
        if not all(0 <= value <= 65535 for value in values):
            raise ValueError(f"values lie in 0..65535, got {list(values)}")
        if taken := sorted(set(values) & as_ignored(self.ignore_index)):
            raise ValueError(f"ignore_index {taken} are values of classes")
        if self.quarter_turns and not isinstance(self.crop, int) and self.crop[0] != self.crop[1]:
            raise ValueError(f"quarter_turns need a square crop, got {list(self.crop)}")
        return self

    def build(self, split: Split) -> "ChangeSamples":
        """The samples of a split; raises DataError that shows the layouts where files are missing."""
        if self.root is None:
            raise DataError(f"data 'change_folder' needs data.root=ROOT; {LAYOUT}")
        root = Path(self.root)
        if not root.is_dir():
            raise DataError(f"{root.absolute()}: no such folder; {LAYOUT}")
        pairs, faults = self._find(root, self.train if split == "train" else self.val)
        return ChangeSamples(pairs, self._labels(), self.augment_pairs() if split == "train" else None, faults)

    def augment_pairs(self) -> PairAugment:
        """The training augmentation that these options describe."""
        alone = self.augment()
        return PairAugment(
            alone.geometry,
            alone.colours,
            seed=self.seed,
            shared_colours=self.photometry == "shared",
            quarter_turns=self.quarter_turns,
            swap=self.swap,
        )

    def _find(self, root: Path, name: str) -> tuple[list[ChangePair], list[str]]:
        file = root / "list" / f"{name}.txt"
        inside = (root / name).is_dir()
        if not (inside or file.is_file()):
            raise DataError(f"{root}: neither a folder {root / name} nor a list {file}; {LAYOUT}")
        above = root / name if inside else root
        places = Places(above / self.before, above / self.after, above / self.label)
        if not inside:
            found = listed(file, root, places, LAYOUT)
        else:
            for folder in (places.before, places.after, places.masks):
                if not folder.is_dir():
                    raise DataError(f"{folder}: no such folder; {LAYOUT}")
            found = places.find()
        if not found[0]:
            raise DataError(f"{places.before if inside else file}: no pictures; {LAYOUT}")
        return found

    def _values(self) -> tuple[int, ...]:
        if self.values is not None:
            return self.values
        return (0, 255) if len(self.classes) == 2 else tuple(range(len(self.classes)))

    def _labels(self) -> Labels:
        count = len(self.classes)
        palette = (*PALETTE, *colours(count))[:count]
        return Labels(self.classes, palette, as_ignored(self.ignore_index), values=self._values())


class ChangeSamples(PairedSamples):
    """One split; images are (3, 2, H, W), before and after, masks (H, W). Training pairs are augmented crops."""

    def __init__(
        self, pairs: Sequence[ChangePair], labels: Labels, augment: PairAugment | None, faults: Sequence[str]
    ) -> None:
        super().__init__(pairs, labels, None, faults)
        self.changes, self._augment_pair = tuple(pairs), augment

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        pair = self.changes[index]
        before, after, mask = read_image(pair.image), read_image(pair.after), self.read_labels(index)
        if before.shape[:2] != mask.shape:
            raise DataError(size_fault(pair, before.shape[:2], mask.shape))
        if after.shape != before.shape:
            later = Pair(pair.id, pair.image, pair.after)
            raise DataError(size_fault(later, before.shape[:2], after.shape[:2], SECOND))
        if self._augment_pair is not None:
            before, after, mask = self._augment_pair(before, after, mask, epoch=epoch, index=index)
        pictures = np.stack([before, after]).transpose(3, 0, 1, 2)  # (3, 2, H, W)
        return Sample(id=pair.id, image=torch.from_numpy(np.ascontiguousarray(pictures)), mask=torch.from_numpy(mask))

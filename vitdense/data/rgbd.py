"""`rgbd`: pictures with depth maps in files, as NYU, KITTI and 7-Scenes store them: 16-bit PNGs, 0 where unknown."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vitdense.contracts import DATA, DataConfig, Sample, Samples, Split
from vitdense.data.audit import MEASURED, audit_pairs, where_measured
from vitdense.data.images import read_depth, read_image
from vitdense.data.pairs import Pair, find_pairs, missing_files, read_list, size_fault
from vitdense.data.transforms import Augment, Geometry, Photometric
from vitdense.errors import DataError
from vitdense.regions import Crop, crop_region

LAYOUT = """expected one of
  ROOT/{train,val}/**/x.color.jpg, x.depth.png       (data.image_suffix, data.depth_suffix)
  ROOT/**/x.color.jpg, x.depth.png                   with data.val_every=5: every fifth is for validation
  ROOT/images/x.jpg, ROOT/depth/x.png                with data.image_folder=images data.depth_folder=depth
                                                     data.image_suffix=.jpg data.depth_suffix=.png
  and split lists, data.train_list=FILE data.val_list=FILE, each line a name or `PICTURE DEPTH_MAP`"""


@DATA.register("rgbd")
class RgbdConfig(DataConfig):
    """Files hold `scale` units a metre (KITTI: 256). Depth outside `min_depth`..`max_depth` (metres, neither included)
    counts as unknown, and so does in validation what lies outside `eval_crop`.

    Training: cut to `crop` (left out: whole pictures) after resizing by a factor in `zoom`, which leaves metres alone.
    """

    image_suffix: str = ".color.jpg"
    depth_suffix: str = ".depth.png"
    image_folder: str = "."
    depth_folder: str = "."
    train_list: str | None = None
    val_list: str | None = None
    val_every: int | None = Field(default=None, ge=2)
    scale: PositiveFloat = 1000.0
    min_depth: NonNegativeFloat = 1e-3
    max_depth: PositiveFloat | None = None
    eval_crop: Crop = "none"
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    zoom: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    flip: bool = True
    photometric: bool = True
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check(self) -> "RgbdConfig":
        if self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom: the smallest factor comes first, got {list(self.zoom)}")
        if self.max_depth is not None and self.max_depth <= self.min_depth:
            raise ValueError(f"max_depth must lie above min_depth ({self.min_depth}), got {self.max_depth}")
        if (self.train_list is None) != (self.val_list is None):
            raise ValueError("train_list and val_list go together")
        if self.val_every is not None and self.train_list is not None:
            raise ValueError("val_every and the lists are two ways to split; give one of them")
        return self

    def build(self, split: Split) -> "RgbdSamples":
        """The samples of a split; raises DataError that shows the layouts where files are missing."""
        if self.root is None:
            raise DataError(f"data 'rgbd' needs data.root=ROOT; {LAYOUT}")
        root = Path(self.root)
        if not root.is_dir():
            raise DataError(f"{root.absolute()}: no such folder; {LAYOUT}")
        pairs, faults = self._listed(root, split) if self.train_list is not None else self._found(root, split)
        if not pairs:
            raise DataError(f"{root}: no picture of the split {split!r} (*{self.image_suffix}); {LAYOUT}")
        return RgbdSamples(pairs, self, split, faults)

    def _found(self, root: Path, split: Split) -> tuple[list[Pair], list[str]]:
        parts = all((root / part).is_dir() for part in ("train", "val"))
        if self.val_every is None and not parts:
            raise DataError(f"{root}: no folders train and val, no data.val_every and no lists; {LAYOUT}")
        place = root / split if self.val_every is None else root
        pairs, faults = find_pairs(
            place / self.image_folder,
            place / self.depth_folder,
            image_suffix=self.image_suffix,
            mask_suffix=self.depth_suffix,
            what="depth map",
        )
        if self.val_every is None:
            return pairs, faults
        wanted = split == "val"
        return [pair for index, pair in enumerate(pairs) if (index % self.val_every == 0) == wanted], faults

    def _listed(self, root: Path, split: Split) -> tuple[list[Pair], list[str]]:
        name = self.train_list if split == "train" else self.val_list
        assert name is not None
        pairs = []
        for words in read_list(root / name, LAYOUT):  # an absolute path stays what it is
            if len(words) == 1:
                image, depth = f"{words[0]}{self.image_suffix}", f"{words[0]}{self.depth_suffix}"
            else:  # the lists of BTS and Eigen have a third column, and say None where KITTI has no depth
                image, depth = words[0].lstrip("/"), words[1].lstrip("/")
            if depth != "None":
                places = (root / self.image_folder / image, root / self.depth_folder / depth)
                pairs.append(Pair(Path(image).with_suffix("").as_posix() if len(words) > 1 else words[0], *places))
        return pairs, missing_files(pairs, "depth map")


class RgbdSamples(Samples):
    """One split of pictures with depth. Training samples are augmented; validation samples keep the picture's size."""

    classes, palette = (), ()
    counted, what = MEASURED, "depth map"

    def __init__(self, pairs: Sequence[Pair], config: RgbdConfig, split: Split, faults: Sequence[str]) -> None:
        self.pairs, self.config, self.faults = tuple(pairs), config, tuple(faults)
        self._train = split == "train"
        self._colours = Photometric() if self._train and config.photometric else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        pair = self.pairs[index]
        image, depth = read_image(pair.image), self.read_metres(index)
        if image.shape[:2] != depth.shape:
            raise DataError(size_fault(pair, image.shape[:2], depth.shape, self.what))
        if self._train:
            image, depth = self._augment(depth.shape)(image, depth, epoch=epoch, index=index)
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))  # (3, H, W)
        return Sample(id=pair.id, image=torch.from_numpy(pixels), depth=torch.from_numpy(depth))

    def read_metres(self, index: int) -> NDArray[np.float32]:
        """(H, W) metres, 0 where nothing was measured, out of range, or in validation outside the crop that counts."""
        config = self.config
        depth = read_depth(self.pairs[index].mask, config.scale).astype(np.float32)
        valid = depth > config.min_depth
        if config.max_depth is not None:
            valid &= depth < config.max_depth
        if not self._train:
            outside = np.ones(depth.shape, np.bool_)
            outside[crop_region(config.eval_crop, (depth.shape[0], depth.shape[1]))] = False
            valid &= ~outside
        return np.where(valid, depth, np.float32(0))

    def read_labels(self, index: int) -> NDArray[np.int16]:
        """(H, W): 0 where there is depth, else IGNORE; a map without any raises DataError."""
        depth = self.read_metres(index)
        if not (depth > 0).any():
            config = self.config
            farthest = "" if config.max_depth is None else f" and below {config.max_depth:g}"
            raise DataError(
                f"{self.pairs[index].mask}: not one pixel above {config.min_depth:g}{farthest} metres that counts,"
                f" at {config.scale:g} units a metre (data.scale)"
            )
        return where_measured(depth)

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """Pairing, header sizes of every pair, and at most `limit` pairs read in full."""
        return audit_pairs(self, limit=limit, report=report).faults

    def _augment(self, size: tuple[int, ...]) -> Augment:
        config = self.config
        crop = (size[0], size[1]) if config.crop is None else config.crop
        geometry = Geometry(
            crop=(crop, crop) if isinstance(crop, int) else crop,
            scale=config.zoom,
            category_ratio=1.0,
            flip=config.flip,
        )
        return Augment(geometry, self._colours, seed=config.seed, unlabelled=0)

"""`volume_folder`: volumes with a class for each voxel, laid out as BTCV and the Medical Segmentation Decathlon."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt

from vitdense.contracts import DATA, Sample, Samples, Split
from vitdense.data.audit import shorten
from vitdense.data.boxes.records import Fault, short
from vitdense.data.segmentation import colours
from vitdense.data.volumes.crops import CropConfig, as_image, augment, draw_part, resample, whole_of
from vitdense.data.volumes.files import as_labels, has_suffix, open_volume, stem
from vitdense.errors import DataError

LAYOUT = """expected
  ROOT/imagesTr/x.nii.gz (or .npy), ROOT/labelsTr/x.nii.gz
  ROOT/dataset.json                with "labels", {"0": "background", ...}, and perhaps "training" and "validation",
                                   lists of {"image": PATH, "label": PATH}; set by data.index
  without such a list one volume of data.val_every is for validation; without "labels" set data.class_names"""
INDEX_NAMES = ("dataset.json", "dataset_0.json")


class Pair(NamedTuple):
    """A volume and its labels."""

    id: str
    image: Path
    label: Path


@DATA.register("volume_folder")
class VolumeFolderConfig(CropConfig):
    """`images` and `labels` are folders below `root`, with files of the same names but for "img" and "label" in them;
    `index` is a JSON with classes and lists. `class_names` stand above its own."""

    images: str = "imagesTr"
    labels: str = "labelsTr"
    index: str | None = None
    class_names: tuple[str, ...] | None = None
    val_every: PositiveInt | None = 5
    seed: NonNegativeInt = 0

    def build(self, split: Split) -> "Volumes":
        """The samples of a split; raises DataError that shows the layout where files are missing."""
        if self.root is None:
            raise DataError(f"data 'volume_folder' needs data.root=ROOT; {LAYOUT}")
        root = Path(self.root)
        place, index = self._index(root)
        classes = self.class_names or _classes(place, index)
        listed = index.get("training" if split == "train" else "validation")
        pairs = _listed(root, place, listed) if listed else self._found(root, split)
        if not pairs:
            raise DataError(f"{root}: no volumes in the split {split!r}; {LAYOUT}")
        return Volumes(self, split, classes, pairs)

    def _index(self, root: Path) -> tuple[Path, Mapping[str, Any]]:
        names = INDEX_NAMES if self.index is None else (self.index,)
        path = next((root / name for name in names if (root / name).is_file()), root / names[0])
        if not path.is_file():
            if self.index is not None:
                raise DataError(f"{path}: no such file; {LAYOUT}")
            return path, {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as fault:
            raise DataError(f"{path}: no JSON: {fault}") from None
        if not isinstance(found, dict):
            raise DataError(f"{path}: expected an object, given {short(found)}")
        return path, found

    def _found(self, root: Path, split: Split) -> list[Pair]:
        """Pairs of the folders; every `val_every`-th, by name, is for validation."""
        folders = [root / self.images, root / self.labels]
        for folder in folders:
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; {LAYOUT}")
        images, labels = ({_key(path): path for path in sorted(each.iterdir()) if has_suffix(path)} for each in folders)
        lonely = sorted(images.keys() ^ labels.keys())
        if lonely:
            raise DataError(f"{root}: without a partner in {self.images} or {self.labels}: {', '.join(lonely[:5])}")
        pairs = [Pair(stem(images[key]), images[key], labels[key]) for key in sorted(images)]
        if self.val_every is None:
            return pairs
        rule = self.val_every
        return [pair for place, pair in enumerate(pairs) if (place % rule == rule - 1) == (split == "val")]


class Volumes(Samples):
    """One split: training draws a crop by (seed, epoch, index), validation gives the whole volume."""

    def __init__(
        self, config: VolumeFolderConfig, split: Split, classes: tuple[str, ...], pairs: Sequence[Pair]
    ) -> None:
        self.config, self.split, self.classes, self.pairs = config, split, classes, list(pairs)
        self.palette = ((0, 0, 0), *colours(len(classes) - 1))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        pair, config = self.pairs[key[1]], self.config
        generator = np.random.default_rng([config.seed, *key])
        image, labels = _opened(pair)
        resamples = config.spacing is not None and image.spacing is not None
        crops = self.split == "train"
        # Where nothing is resampled, the rest of a volume need not leave the disk.
        part = draw_part(labels.voxels, config, generator) if crops and not resamples else whole_of(labels.voxels.shape)
        voxels = as_image(pair.image, image.voxels[(..., *part)], config)
        mask = torch.from_numpy(as_labels(pair.label, labels.voxels[part], len(self.classes)))
        if resamples:
            assert config.spacing is not None
            assert image.spacing is not None
            voxels, mask = resample(voxels, mask, image.spacing, config.spacing)
            if crops:
                part = draw_part(mask.numpy(), config, generator)
                voxels, mask = voxels[(..., *part)], mask[part]
        if crops:
            voxels, mask = augment(voxels, mask, config, generator)
        return Sample(id=pair.id, image=voxels.contiguous(), mask=mask.contiguous())

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """Missing files, labels of another size, and of at most `limit` volumes numbers that are no class."""
        total = len(self)
        count = total if limit is None else min(limit, total)
        deep = {place * total // count for place in range(count)}
        faults = []
        for index, pair in enumerate(self.pairs):
            try:
                image, labels = _opened(pair)
                if index in deep:
                    as_labels(pair.label, labels.voxels, len(self.classes))
                    as_image(pair.image, image.voxels, self.config)
            except DataError as fault:
                faults.append(Fault("unreadable volumes", str(fault)))
            if report is not None:
                report(f"{index + 1} of {total} volumes")
        return shorten(faults)


def _opened(pair: Pair) -> tuple[Any, Any]:
    image, labels = open_volume(pair.image), open_volume(pair.label)
    if labels.voxels.ndim != 3:
        raise DataError(f"{pair.label}: labels are (D, H, W), found {labels.voxels.shape}")
    if image.voxels.shape[-3:] != labels.voxels.shape:
        raise DataError(f"{pair.label}: is {labels.voxels.shape}, and {pair.image} {image.voxels.shape[-3:]} (D, H, W)")
    return image, labels


def _key(path: Path) -> str:
    """What BTCV's img0001 and label0001 have in common, and the Decathlon's x_0000 and x."""
    name = stem(path)
    for word in ("img", "image", "label"):
        name = name.removeprefix(word)
    return name.removesuffix("_0000")


def _classes(path: Path, index: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of {"0": "background"}, or of {"background": 0}."""
    given = index.get("labels")
    if not isinstance(given, dict) or not given:
        raise DataError(f"{path}: no names of classes: set data.class_names; {LAYOUT}")
    turned = {str(value): str(key) for key, value in given.items()}
    named = {str(key): str(value) for key, value in given.items()} if "0" in given else turned
    numbers = [str(number) for number in range(len(named))]
    if sorted(named) != sorted(numbers):
        raise DataError(f"{path}: labels are the numbers from 0 on, each with a name; given {short(given)}")
    return tuple(named[number] for number in numbers)


def _listed(root: Path, path: Path, listed: Any) -> list[Pair]:
    pairs = []
    for place, entry in enumerate(listed if isinstance(listed, list) else [listed]):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
            raise DataError(f"{path}: entry {place}: expected {{'image': PATH, 'label': PATH}}, given {short(entry)}")
        image = root / entry["image"]
        if not has_suffix(image):
            raise DataError(f"{path}: entry {place}: {image.name} is no volume (.npy, .nii, .nii.gz)")
        pairs.append(Pair(stem(image), image, root / entry["label"]))
    return pairs

"""`shapes` and what is named after it: the embedded data set, paper shapes before paper hills, which needs no files and
never repeats in training."""

from collections.abc import Callable

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt

from vitdense.contracts import DATA, DataConfig, Sample, Samples, Split, Target
from vitdense.data.boxes.audit import BoxAudit, survey_drawn
from vitdense.data.scenes import CLASSES, Scene, both, render

PALETTE = ((44, 52, 74), (236, 90, 76), (58, 130, 214), (250, 190, 66), (146, 96, 196), (62, 176, 150))
STREAMS: dict[Split, int] = {"train": 0, "val": 1}


@DATA.register("shapes")
class ShapesConfig(DataConfig):
    """Pictures of `size` (a side, or height and width). `train_size` is how many pictures count as one epoch."""

    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 128
    train_size: PositiveInt = 20_000
    val_size: PositiveInt = 200
    seed: NonNegativeInt = 0

    def build(self, split: Split) -> "ShapeSamples":
        """The samples of a split; nothing is stored, each is drawn when it is asked for."""
        return ShapeSamples(self, split)


class ShapeSamples(Samples):
    """Every epoch of training draws new pictures; validation draws the same ones always, from a stream of its own."""

    classes: tuple[str, ...] = CLASSES
    palette: tuple[tuple[int, int, int], ...] = PALETTE

    def __init__(self, config: ShapesConfig, split: Split) -> None:
        self.config, self.split = config, split

    def __len__(self) -> int:
        return self.config.train_size if self.split == "train" else self.config.val_size

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        number, scene = self.draw(key)
        mask = torch.from_numpy(scene.semantic.astype(np.int16))
        return Sample(id=f"{self.split}-{number}", image=pixels(scene), mask=mask)

    def draw(self, key: tuple[int, int]) -> tuple[int, Scene]:
        """(epoch, index) -> the number of the scene in its stream, and the scene."""
        epoch, index = key
        number = epoch * len(self) + index if self.split == "train" else index
        return number, render(self.config.seed, number, both(self.config.size), stream=STREAMS[self.split])

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """Drawn pictures have no faults."""
        return []


@DATA.register("shapes_boxes")
class ShapesBoxesConfig(ShapesConfig):
    """The same pictures with a box and, where `masks`, a mask around what is seen of each shape."""

    masks: bool = False

    def build(self, split: Split) -> "ShapeBoxSamples":
        """The samples of a split; nothing is stored, each is drawn when it is asked for."""
        return ShapeBoxSamples(self, split)


class ShapeBoxSamples(ShapeSamples):
    """Things are the shapes; the background is none."""

    classes = CLASSES[1:]
    palette = PALETTE[1:]
    category_ids = tuple(range(1, len(CLASSES)))

    def __init__(self, config: ShapesBoxesConfig, split: Split) -> None:
        super().__init__(config, split)
        self.with_masks = config.masks

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        number, scene = self.draw(key)
        target = Target(boxes=torch.from_numpy(scene.boxes), labels=torch.from_numpy(scene.labels - 1))
        masks = torch.from_numpy(scene.instances)
        if self.split == "val":
            target["boxes"] = target["boxes"].double()
            target["areas"] = masks.sum((1, 2)).double()
            target["crowd"] = torch.zeros(len(masks), dtype=torch.bool)
        if self.with_masks:
            target["masks"] = masks
        return Sample(id=f"{self.split}-{number}", image=pixels(scene), target=target)

    def survey(self, report: Callable[[str], None] | None = None) -> BoxAudit:
        """Counts of the first ones."""
        return survey_drawn(self, report)


@DATA.register("shapes_depth")
class ShapesDepthConfig(ShapesConfig):
    """The same pictures with their depth in metres: what is larger is nearer, and hills fade with distance."""

    def build(self, split: Split) -> "ShapeDepthSamples":
        """The samples of a split; nothing is stored, each is drawn when it is asked for."""
        return ShapeDepthSamples(self, split)


class ShapeDepthSamples(ShapeSamples):
    """Depth is known everywhere, from about 2 metres to the sky at 10."""

    classes = ()
    palette = ()

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        number, scene = self.draw(key)
        return Sample(id=f"{self.split}-{number}", image=pixels(scene), depth=torch.from_numpy(scene.depth))


def pixels(scene: Scene) -> torch.Tensor:
    """The picture as (3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(scene.image.transpose(2, 0, 1)))  # (3, H, W)

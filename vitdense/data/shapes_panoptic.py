"""`shapes_panoptic`: the embedded pictures as things before stuff, which share out every pixel."""

from collections.abc import Callable

import numpy as np
import torch

from vitdense.contracts import DATA, Sample, Split, Target
from vitdense.data.boxes.audit import BoxAudit, survey_drawn
from vitdense.data.scenes import CLASSES
from vitdense.data.shapes import ShapeSamples, ShapesConfig, pixels


@DATA.register("shapes_panoptic")
class ShapesPanopticConfig(ShapesConfig):
    """The same pictures with a mask for each shape, and one for all that is background."""

    def build(self, split: Split) -> "ShapePanopticSamples":
        """The samples of a split; nothing is stored, each is drawn when it is asked for."""
        return ShapePanopticSamples(self, split)


class ShapePanopticSamples(ShapeSamples):
    """The background is stuff, each shape is a thing."""

    category_ids = tuple(range(len(CLASSES)))
    things = (False, *(True for _ in CLASSES[1:]))

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        number, scene = self.draw(key)
        background = scene.semantic == 0
        masks, labels, boxes = scene.instances, scene.labels, scene.boxes
        if background.any():
            (rows, columns) = (background.any(axis).nonzero()[0] for axis in (1, 0))
            box = [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]
            masks = np.concatenate([background[None], masks])
            labels, boxes = np.append(0, labels), np.concatenate([np.array(box, np.float32), boxes])
        target = Target(boxes=torch.from_numpy(boxes), labels=torch.from_numpy(labels), masks=torch.from_numpy(masks))
        if self.split == "val":
            target["boxes"] = target["boxes"].double()
            target["areas"] = target["masks"].sum((1, 2)).double()
            target["crowd"] = torch.zeros(len(labels), dtype=torch.bool)
        return Sample(id=f"{self.split}-{number}", image=pixels(scene), target=target)

    def survey(self, report: Callable[[str], None] | None = None) -> BoxAudit:
        """Counts of the first ones."""
        return survey_drawn(self, report)

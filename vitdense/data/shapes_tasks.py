"""`shapes_tasks`: the embedded pictures with the labels of several tasks at once, for several heads on one trunk."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field

from vitdense.contracts import DATA, Sample, Split
from vitdense.data.shapes import ShapeSamples, ShapesConfig, pixels

Task = Literal["masks", "depth", "captions"]


@DATA.register("shapes_tasks")
class ShapesTasksConfig(ShapesConfig):
    """`labels` are those that come with each picture."""

    labels: tuple[Task, ...] = Field(default=("masks", "depth"), min_length=1)

    def build(self, split: Split) -> "ShapeTaskSamples":
        """The samples of a split; nothing is stored, each is drawn when it is asked for."""
        return ShapeTaskSamples(self, split)


class ShapeTaskSamples(ShapeSamples):
    """One picture, every label that was asked for."""

    def __init__(self, config: ShapesTasksConfig, split: Split) -> None:
        super().__init__(config, split)
        self.labels = config.labels
        if "masks" not in config.labels:
            self.classes, self.palette = (), ()

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        number, scene = self.draw(key)
        sample = Sample(id=f"{self.split}-{number}", image=pixels(scene))
        if "masks" in self.labels:
            sample["mask"] = torch.from_numpy(scene.semantic.astype(np.int16))
        if "depth" in self.labels:
            sample["depth"] = torch.from_numpy(scene.depth)
        if "captions" in self.labels:
            sample["captions"] = [scene.caption]
        return sample

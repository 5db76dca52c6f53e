"""`shapes_change`: the embedded pairs of pictures, with a mask of which shapes came, went or moved between them."""

import numpy as np
import torch
from pydantic import PositiveInt

from vitdense.contracts import DATA, Sample, Split
from vitdense.data.changes.change_folder import CLASSES, PALETTE
from vitdense.data.changes.rearranged import render_pair
from vitdense.data.scenes import both
from vitdense.data.shapes import ShapeSamples, ShapesConfig

STREAMS: dict[Split, int] = {"train": 8, "val": 9}


@DATA.register("shapes_change")
class ShapesChangeConfig(ShapesConfig):
    """Pairs of one scene. Between its pictures about half of the shapes come, go or move; with `nuisance` light, camera
    and the brightness of the hills change too, which the masks do not count.
    """

    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 64
    nuisance: bool = True

    def build(self, split: Split) -> "ShapeChanges":
        """The pairs of a split; nothing is stored, each is drawn when it is asked for."""
        return ShapeChanges(self, split)


class ShapeChanges(ShapeSamples):
    """Every epoch of training draws new pairs; validation draws the same ones always, from a stream of its own."""

    classes = CLASSES
    palette = PALETTE

    def __init__(self, config: ShapesChangeConfig, split: Split) -> None:
        super().__init__(config, split)
        self.nuisance = config.nuisance

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        number = key[0] * len(self) + key[1] if self.split == "train" else key[1]
        size, stream = both(self.config.size), STREAMS[self.split]
        pair = render_pair(self.config.seed, number, size, stream=stream, nuisance=self.nuisance)
        pictures = np.ascontiguousarray(np.stack([pair.before, pair.after]).transpose(3, 0, 1, 2))
        mask = torch.from_numpy(pair.changed.astype(np.int16))
        return Sample(id=f"{self.split}-{number}", image=torch.from_numpy(pictures), mask=mask)  # (3, 2, H, W)

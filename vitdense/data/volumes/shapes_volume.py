"""`shapes_volume`: the embedded volumes, simple solids in noise with a class for each voxel."""

from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from vitdense.contracts import DATA, DataConfig, Sample, Samples, Split
from vitdense.data.volumes.solids import CLASSES, PALETTE, Volume, render_volume

STREAMS: dict[Split, int] = {"train": 0, "val": 1}


@DATA.register("shapes_volume")
class ShapesVolumeConfig(DataConfig):
    """Volumes of `size`, a side or (D, H, W). `train_size` is how many count as one epoch; `noise` is the deviation of
    what is added to each voxel, of a range of 1."""

    size: PositiveInt | tuple[PositiveInt, PositiveInt, PositiveInt] = 32
    noise: float = Field(default=0.08, ge=0.0)
    train_size: PositiveInt = 20_000
    val_size: PositiveInt = 60
    seed: NonNegativeInt = 0

    def build(self, split: Split) -> "ShapeVolumes":
        """The samples of a split; nothing is stored, each is drawn when it is asked for."""
        return ShapeVolumes(self, split)


class ShapeVolumes(Samples):
    """Every epoch of training draws new volumes; validation draws the same ones always, from a stream of its own."""

    classes = CLASSES
    palette = PALETTE

    def __init__(self, config: ShapesVolumeConfig, split: Split) -> None:
        self.config, self.split = config, split

    def __len__(self) -> int:
        return self.config.train_size if self.split == "train" else self.config.val_size

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        number = key[0] * len(self) + key[1] if self.split == "train" else key[1]
        volume = self.draw(number)
        mask = torch.from_numpy(volume.semantic.astype(np.int16))
        return Sample(id=f"{self.split}-{number}", image=torch.from_numpy(volume.voxels)[None], mask=mask)

    def draw(self, number: int) -> Volume:
        """A volume by its number in the split's stream."""
        size = self.config.size
        extent = (size, size, size) if isinstance(size, int) else size
        return render_volume(self.config.seed, number, extent, noise=self.config.noise, stream=STREAMS[self.split])

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """Drawn volumes have no faults."""
        return []

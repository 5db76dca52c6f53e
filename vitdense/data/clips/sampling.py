"""Which frames of a video make a clip: uniform over all of it, dense at one place, or drawn at random."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from vitdense.contracts import DataConfig

Numbers = NDArray[np.int64]


class SamplingConfig(DataConfig):
    """Clips of `frames` frames. `uniform` cuts a video into as many equal parts and takes one frame of each (TSN,
    https://arxiv.org/abs/1608.00859): any in training, the middle in validation. `dense` takes every `frame_stride`-th
    frame from a random place, or from the middle. `random` takes any frames, in order, and in validation uniform ones.

    `fps` counts frames of a video resampled to that rate, by the time at which each is shown; without it they are the
    file's own, whatever their rate. A video that is too short repeats its last frame. Validation may look at `views`
    clips of each video, evenly spread.
    """

    frames: PositiveInt = 16
    sampling: Literal["uniform", "dense", "random"] = "dense"
    frame_stride: PositiveInt = 4
    fps: PositiveFloat | None = None
    views: PositiveInt = 1

    def training_frames(self, count: int, generator: np.random.Generator) -> Numbers:
        """(T,): numbers of frames below `count`, in order."""
        if self.sampling == "uniform":
            return self._parts(count, generator.uniform(size=self.frames))
        if self.sampling == "random":
            drawn = generator.choice(count, self.frames, replace=count < self.frames)
            return np.sort(drawn).astype(np.int64)
        return self._dense(count, int(generator.integers(self._last_start(count) + 1)))

    def validation_frames(self, count: int) -> list[Numbers]:
        """`views` clips (T,)."""
        if self.sampling != "dense":
            return [self._parts(count, (view + 0.5) / self.views) for view in range(self.views)]
        last = self._last_start(count)
        starts = [last / 2] if self.views == 1 else np.linspace(0, last, self.views).tolist()
        return [self._dense(count, int(start)) for start in starts]

    def _last_start(self, count: int) -> int:
        return max(count - (self.frames - 1) * self.frame_stride - 1, 0)

    def _dense(self, count: int, start: int) -> Numbers:
        return np.minimum(start + np.arange(self.frames, dtype=np.int64) * self.frame_stride, count - 1)

    def _parts(self, count: int, share: float | NDArray[np.float64]) -> Numbers:
        """A frame of each part, at a share in [0, 1) of its length."""
        return np.minimum(((np.arange(self.frames) + share) * count / self.frames).astype(np.int64), count - 1)


def resample(times: NDArray[np.float64], fps: float) -> Numbers:
    """times (N,): the seconds at which frames are shown -> (M,): the frame that is on the screen at each tick of a
    clock of `fps`, from the first frame to the last."""
    # A tick that rounding puts just before its frame belongs to it.
    ticks = np.arange(int(np.floor(times[-1] * fps + 1e-6)) + 1) / fps
    shown = np.searchsorted(times, ticks + 1e-6 / fps, side="right") - 1
    return np.maximum(shown, 0).astype(np.int64)

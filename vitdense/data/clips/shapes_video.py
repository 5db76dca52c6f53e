"""`shapes_video`: the embedded clips of moving shapes, with the direction they set out in or a mask of each frame."""

from collections.abc import Callable

import numpy as np
import torch
from pydantic import PositiveInt

from vitdense.contracts import DATA, Sample, Split
from vitdense.data.classes.audit import ClassAudit
from vitdense.data.clips.moving import DIRECTIONS, Clip, Course, render_clip
from vitdense.data.scenes import CLASSES, Backdrop, both
from vitdense.data.shapes import PALETTE, ShapeSamples, ShapesConfig

STREAMS: dict[Split, int] = {"train": 5, "val": 6}
SHUFFLED = 7
DRAWN = 100


@DATA.register("shapes_video")
class ShapesVideoConfig(ShapesConfig):
    """Clips of `frames` frames in which all shapes move together; the class is the direction they set out in: one of
    eight, which no single frame gives away. Once `round` (`course`), a multiple of eight frames without their order
    don't either; a `line` shows its axis in any order.

    `masks` gives instead which shape is where in each frame. The `backdrop` stands still: hills, which are most of a
    clip and tell nothing of its motion, or plain grey, before which small networks learn it soon.

    `shuffle_frames` lays the frames of each clip in a random order: what a model still knows, it knows without motion.
    """

    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 64
    frames: PositiveInt = 8
    masks: bool = False
    backdrop: Backdrop = "hills"
    course: Course = "round"
    shuffle_frames: bool = False

    def build(self, split: Split) -> "ShapeClips":
        """The clips of a split; nothing is stored, each is drawn when it is asked for."""
        return ShapeClips(self, split)


class ShapeClips(ShapeSamples):
    """Every epoch of training draws new clips; validation draws the same ones always, from a stream of its own."""

    def __init__(self, config: ShapesVideoConfig, split: Split) -> None:
        super().__init__(config, split)
        self.video = config
        self.classes = CLASSES if config.masks else DIRECTIONS
        self.palette = PALETTE if config.masks else ()

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        number = key[0] * len(self) + key[1] if self.split == "train" else key[1]
        clip = self._drawn(number)
        order = np.arange(len(clip.frames))
        if self.video.shuffle_frames:
            order = np.random.default_rng([self.config.seed, SHUFFLED, STREAMS[self.split], number]).permutation(order)
        frames = np.ascontiguousarray(clip.frames[order].transpose(3, 0, 1, 2))
        sample = Sample(id=f"{self.split}-{number}", image=torch.from_numpy(frames))  # (3, T, H, W)
        if self.video.masks:
            sample["mask"] = torch.from_numpy(clip.semantic[order].astype(np.int16))
        else:
            sample["label"] = clip.direction
        return sample

    def survey(self, report: Callable[[str], None] | None = None) -> ClassAudit:
        """Counts of the first ones; of clips with masks only their sizes."""
        audit = ClassAudit(self.classes, len(self))
        for index in range(min(DRAWN, len(self))):
            audit.count(-1 if self.video.masks else self._drawn(index).direction, both(self.config.size))
        return audit

    def _drawn(self, number: int) -> Clip:
        size, stream, plain = both(self.config.size), STREAMS[self.split], self.video.backdrop == "plain"
        frames, course = self.video.frames, self.video.course
        return render_clip(self.config.seed, number, size, frames, stream=stream, plain=plain, course=course)

"""Any dense head of pictures on maps with a time axis, one frame after the other."""

from typing import Self

import torch
from torch import Tensor

from heads.frames import fold, fold_batch, of_frames, unfold, without_time
from heads.named import NamedHead
from vitdense.contracts import HEADS, Batch, Head, HeadConfig, Level, Outputs, Predictions
from vitdense.errors import UserError


@HEADS.register("per_frame")
class PerFrameConfig(HeadConfig):
    """`head` is one of pictures with an output by pixel, such as upernet, dpt or linear_depth."""

    head: NamedHead

    def reads_all(self) -> bool:
        """As the head of pictures."""
        return self.head.reads_all()

    def for_classes(self, count: int) -> Self:
        """The head of pictures for so many."""
        return self.model_copy(update={"num_classes": count, "head": self.head.for_classes(count)})

    def build(self, levels: tuple[Level, ...]) -> "PerFrame":
        """For levels of one time stride; UserError for others, and for heads without an output by pixel."""
        strides = [level.time_stride for level in levels]
        if len(set(strides)) > 1:
            raise UserError(f"head per_frame needs maps of the same frames, got time strides {strides}")
        return PerFrame(self.head.build(without_time(levels, "per_frame")))


class PerFrame(Head):
    """Outputs of the head with a time axis: (B, C, t, h, w), of as many frames as the maps have."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        if head.dense is None or head.reads != "maps":
            raise UserError(f"head per_frame needs a head with an output by pixel, {type(head).__name__} has none")
        self.head = head
        self.num_classes, self.dense = head.num_classes, head.dense

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """features: (B, C_i, t, h_i, w_i) -> the head's outputs, (B, K, t, h, w)."""
        count = len(features[0])
        outputs: Outputs = self.head([fold(each) for each in features], fold_batch(batch))
        return {name: unfold(each, count) for name, each in outputs.items()}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The head's, over all frames as pictures; outputs of fewer frames are interpolated along time."""
        frames = batch["images"].shape[2]
        return self.head.losses({name: of_frames(each, frames) for name, each in outputs.items()}, fold_batch(batch))

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """(T, H, W) of what the head predicts, for each clip."""
        frames = batch["images"].shape[2]
        found = self.head.predict({name: of_frames(each, frames) for name, each in outputs.items()}, fold_batch(batch))
        return [torch.stack(found[start : start + frames]) for start in range(0, len(found), frames)]

    def no_decay(self) -> set[str]:
        """The head's, under their names here."""
        return {f"head.{name}" for name in self.head.no_decay()}

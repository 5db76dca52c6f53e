"""What heads share that segment clips and volumes: the losses and class indices of pictures, over all frames."""

import torch
from torch import Tensor

from heads.frames import fold_batch, of_frames, without_time
from heads.segmentation import SegmentationConfig, SegmentationHead
from vitdense.contracts import Batch, Level, Outputs, Predictions
from vitdense.errors import UserError


class SegmentationHead3d(SegmentationHead):
    """Losses and predictions from `logits` (B, K, t, h, w) and, in training, `auxiliary_logits` of the same kind.

    Both are interpolated trilinearly: along time first, where they are small, then in each frame, where all losses of
    pictures serve; a loss over a batch, such as Dice, is over all frames of all clips.
    """

    def __init__(self, config: SegmentationConfig, levels: tuple[Level, ...], *, name: str) -> None:
        super().__init__(config, without_time(levels, name))
        if config.align_corners:
            raise UserError(f"head {name} has no align_corners: leave it out")

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """As those of pictures, of batch["masks"] (B, T, H, W)."""
        frames = batch["images"].shape[2]
        return super().losses({name: of_frames(each, frames) for name, each in outputs.items()}, fold_batch(batch))

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """One (T, H, W) tensor of class indices for each clip or volume, uint8 up to 255 classes, else int16."""
        frames = batch["images"].shape[2]
        found = super().predict({"logits": of_frames(outputs["logits"], frames)}, fold_batch(batch))
        return [torch.stack(found[start : start + frames]) for start in range(0, len(found), frames)]

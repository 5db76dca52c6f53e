"""What every semantic segmentation head shares: losses over the mask's pixels, and class indices at any size."""

from typing import Any

import torch
from pydantic import Field, PositiveFloat, SerializeAsAny, field_validator
from torch import Tensor, nn

from heads.losses import LossConfig, Pixels, read_losses
from vitdense.contracts import Batch, Head, HeadConfig, Level, Outputs, Predictions, require
from vitdense.errors import UserError
from vitdense.ops.upsampled_argmax import upsampled_argmax

MASK_DTYPES = (torch.int16, torch.int32, torch.int64)


class SegmentationConfig(HeadConfig):
    """Options of every head that gives `logits` (B, K, h, w); `losses` are names with weights or options."""

    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    align_corners: bool = False
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    class_weights: tuple[PositiveFloat, ...] | None = None
    losses: dict[str, SerializeAsAny[LossConfig]] = Field(default={"cross_entropy": 1.0}, validate_default=True)

    @field_validator("losses", mode="before")
    @classmethod
    def _read_losses(cls, given: Any) -> dict[str, LossConfig]:
        return read_losses(given)


class SegmentationHead(Head):
    """Losses and predictions from `logits` (B, K, h, w) and, in training, `auxiliary_logits` of the same kind."""

    dense = "logits"
    auxiliary_weight = 0.0

    def __init__(self, config: SegmentationConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        if config.num_classes is None:
            raise UserError("a segmentation head needs num_classes: give it, or take it from the data")
        if any(level.time_stride is not None for level in levels):
            raise UserError(
                "a segmentation head needs the maps of pictures, got levels with a time stride: lay it under "
                "`head: {name: per_frame, head: ...}`, or take linear_3d or upernet_3d"
            )
        weights = config.class_weights
        if weights is not None and len(weights) != config.num_classes:
            raise UserError(f"class_weights needs one number per class: got {len(weights)} for {config.num_classes}")
        self.num_classes = config.num_classes
        self.align_corners = config.align_corners
        self.label_smoothing = config.label_smoothing
        self.chosen_losses = tuple(config.losses.values())
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None if weights is None else torch.tensor(weights), persistent=False)

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """One entry for each of the recipe's losses, weighted, such as `loss_ce`; `loss_aux` is their sum for the
        auxiliary logits, times its weight. Each is () in fp32, and 0 where no pixel has a label.
        """
        masks = check_masks(outputs["logits"], batch)
        losses = self._losses(outputs["logits"], masks, align_corners=self.align_corners)
        return self._with_auxiliary(losses, outputs, masks)

    def _with_auxiliary(self, losses: dict[str, Tensor], outputs: Outputs, masks: Tensor) -> dict[str, Tensor]:
        """The losses, and `loss_aux` where there are auxiliary logits."""
        if "auxiliary_logits" in outputs:
            found = self._losses(outputs["auxiliary_logits"], masks, align_corners=self.align_corners)
            auxiliary = torch.stack(list(found.values()))
            losses["loss_aux"] = self.auxiliary_weight * auxiliary.sum()
        return losses

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """One (H, W) tensor of class indices for each picture, uint8 up to 255 classes, else int16."""
        sizes = batch["sizes"]
        assert len(sizes) == len(outputs["logits"]), f"{len(sizes)} sizes for {len(outputs['logits'])} pictures"
        return [
            upsampled_argmax(logits[None], (size[0], size[1]), align_corners=self.align_corners)[0]
            for logits, size in zip(outputs["logits"], sizes, strict=True)
        ]

    def _losses(self, logits: Tensor, masks: Tensor, *, align_corners: bool) -> dict[str, Tensor]:
        pixels = Pixels(
            logits,
            masks,
            align_corners=align_corners,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
        )
        return {f"loss_{loss.key}": loss.weight * loss.loss(pixels) for loss in self.chosen_losses}


def check_masks(logits: Tensor, batch: Batch) -> Tensor:
    """The batch's masks as (B, H, W) int64, or a UserError where they don't belong to its pictures."""
    require(batch, "masks", "a head of segmentation learns from masks")
    masks = batch["masks"]
    if masks.dtype not in MASK_DTYPES:
        raise UserError(f"masks must hold int16, int32 or int64 class indices, got {masks.dtype}")
    height_width = tuple(batch["images"].shape[-2:]) if "images" in batch else tuple(masks.shape[1:])
    expected = (len(logits), *height_width)
    if tuple(masks.shape) != expected:
        raise UserError(f"masks must be (B, H, W) = {expected} as the pictures are, got {tuple(masks.shape)}")
    return masks.long()


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution to class logits, initialised as in the published recipes: normal, std 0.01."""
    layer = nn.Conv2d(channels, num_classes, kernel_size=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer

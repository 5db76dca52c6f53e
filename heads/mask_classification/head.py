"""What every head with a mask for each query shares: options, losses of its layers, and results at a picture's size."""

from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from heads.mask_classification.losses import Layers, MaskLosses
from heads.mask_classification.matching import MaskCosts
from heads.mask_classification.points import PointConfig
from heads.mask_classification.results import class_map, class_scores, instances, segments
from heads.mask_classification.targets import read_masks
from vitdense.contracts import Batch, Head, HeadConfig, Outputs, Predictions
from vitdense.errors import UserError
from vitdense.ops.resizing import full_precision, resize

Task = Literal["panoptic", "instance", "semantic"]


class MaskClassificationConfig(HeadConfig):
    """Options of every head with a class and a mask for each query; `matcher` is what a wrong pair costs, `points`
    where masks are compared, `nothing_weight` what a query without a target counts.

    `task` is what predictions are. Of a panoptic one, `stuff` are the classes whose masks are one segment, by their
    indices (None: those of the data), and a segment is surer than `threshold` and keeps more than `overlap_threshold`
    of its mask. Instances are the `max_detections` best.
    """

    num_queries: PositiveInt = 100
    task: Task = "panoptic"
    stuff: tuple[int, ...] | None = None
    threshold: float = Field(default=0.8, ge=0.0, le=1.0)
    mask_threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    overlap_threshold: float = Field(default=0.8, ge=0.0, le=1.0)
    max_detections: PositiveInt = 100
    matcher: MaskCosts = MaskCosts()
    points: PointConfig = PointConfig()
    label_weight: NonNegativeFloat = 2.0
    mask_weight: NonNegativeFloat = 5.0
    dice_weight: NonNegativeFloat = 5.0
    nothing_weight: NonNegativeFloat = 0.1

    def for_things(self, things: tuple[bool, ...]) -> Self:
        """The same with the data's stuff, where the recipe names none."""
        if self.stuff is not None or not things:
            return self
        return self.model_copy(update={"stuff": tuple(index for index, thing in enumerate(things) if not thing)})


class MaskClassificationHead(Head):
    """Losses and predictions from `logits` (B, Q, K + 1), the last class for nothing, and `masks` (B, Q, h, w), logits
    over the padded canvas. In training from `layer_logits` (L, B, Q, K + 1), the last layer last, and the factors of
    masks: `mask_embeddings` (L, B, Q, E), and `pixel_embeddings` (B, E, h, w), or those of layer i with `_i` behind.
    """

    last_layer_first = False
    """Whether the last layer draws its random points before all others do."""

    def __init__(self, config: MaskClassificationConfig) -> None:
        super().__init__()
        if config.num_classes is None:
            raise UserError("a head of masks needs num_classes: give it, or take it from the data")
        self.config = config
        self.num_classes = config.num_classes
        self.stuff = frozenset(config.stuff or ())
        strange = [index for index in self.stuff if not 0 <= index < config.num_classes]
        if strange:
            raise UserError(f"stuff names class {strange[0]}; there are classes 0..{config.num_classes - 1}")
        self.detects = config.task == "instance"
        self.segments = config.task == "panoptic"
        self.dense = "scores" if config.task == "semantic" else None
        self.mask_losses = MaskLosses(config.matcher, config.points, config.nothing_weight)

    def answer(self, logits: Tensor, embeddings: Tensor, pixels: Tensor, batch: Batch) -> Outputs:
        """The last layer's logits (B, Q, K + 1), embeddings (B, Q, E) and pixels (B, E, h, w) -> what is predicted of;
        `scores` (B, K, h, w) besides, where classes of pixels are asked for."""
        masks = torch.einsum("bqe,behw->bqhw", embeddings, pixels)
        outputs = {"logits": logits, "masks": masks}
        if self.dense is not None and not batch.get("lean", False):
            outputs["scores"] = class_scores(logits, masks)
        return outputs

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Each is () in fp32, weighted: `loss_ce`, `loss_mask` and `loss_dice` of the last layer, and those of layer i
        before it with `_i` behind."""
        logits, embeddings = full_precision(outputs["layer_logits"]), outputs["mask_embeddings"]
        last = len(logits) - 1
        shared = outputs.get("pixel_embeddings")
        pixels = [outputs[f"pixel_embeddings_{i}"] for i in range(last + 1)] if shared is None else [shared]
        targets, wanted = read_masks(batch, self.num_classes, logits.device)
        order = [last, *range(last)] if self.last_layer_first else list(range(last + 1))
        label, mask, dice = self.mask_losses(
            Layers.of(logits, embeddings, pixels), targets, wanted, order, lambda picture: _name(batch, picture)
        )
        config = self.config
        stacks = {
            "loss_ce": config.label_weight * label,
            "loss_mask": config.mask_weight * mask,
            "loss_dice": config.dice_weight * dice,
        }
        return {
            name if index == last else f"{name}_{index}": value
            for name, values in stacks.items()
            for index, value in enumerate(values)
        }

    @torch.no_grad()
    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """Of each picture at batch["sizes"], by the task: a map of class indices, Detections, or Segments."""
        if "masks" not in outputs:  # of windows and several views nothing but the scores is left
            scores = full_precision(outputs["scores"])
            return [resize(each[None], size)[0].argmax(0) for each, size in zip(scores, batch["sizes"], strict=True)]
        found: Predictions = []
        for picture, size in enumerate(batch["sizes"]):
            given = (outputs["logits"][picture], outputs["masks"][picture], size, batch, picture)
            if self.dense is not None:
                found.append(class_map(*given))
            elif self.detects:
                found.append(instances(*given, most=self.config.max_detections, stuff=self.stuff))
            else:
                config = self.config
                merged = segments(
                    *given,
                    stuff=self.stuff,
                    threshold=config.threshold,
                    mask_threshold=config.mask_threshold,
                    overlap_threshold=config.overlap_threshold,
                )
                found.append(merged)
        return found

    def deploy(self, outputs: Outputs, size: tuple[int, int]) -> Outputs:
        """`logits` (B, Q, K + 1) and `masks` (B, Q, h, w) at the head's stride, or `scores` (B, K, h, w) of classes."""
        names = ("scores",) if self.dense is not None else ("logits", "masks")
        return {name: outputs[name] for name in names}


def _name(batch: Batch, picture: int) -> str:
    return batch["ids"][picture] if "ids" in batch else f"picture {picture} of the batch"

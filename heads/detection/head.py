"""What every detection head shares: options, the losses of its decoder layers, and things found at a picture's size."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from heads.detection.boxes import to_corners
from heads.detection.losses import box_losses, count_targets
from heads.detection.masks import QueryMasks, has_masks, mask_losses, masks_at, masks_of, multiplied
from heads.detection.matching import MatchCosts, Matches, match
from heads.detection.targets import Targets, read_targets
from vitdense.contracts import Batch, Detections, Head, HeadConfig, Level, Outputs, Predictions
from vitdense.errors import UserError
from vitdense.ops.resizing import full_precision


class DetectionConfig(HeadConfig):
    """Options of every head that answers with `logits` and `boxes_cxcywh`; `matcher` is what a wrong pair costs.
    `masks`: a mask for each query too, learned from the masks of the targets.
    """

    num_queries: PositiveInt = 100
    max_detections: PositiveInt = 100
    matcher: MatchCosts = MatchCosts()
    label_weight: NonNegativeFloat = 1.0
    box_weight: NonNegativeFloat = 5.0
    giou_weight: NonNegativeFloat = 2.0
    masks: bool = False
    mask_weight: NonNegativeFloat = 1.0
    dice_weight: NonNegativeFloat = 1.0
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class DetectionHead(Head):
    """Losses and predictions from `logits` (B, Q, K), `boxes_cxcywh` (B, Q, 4) in 0..1 and, where more than one decoder
    layer learns, `layer_logits` (L, B, Q, K) and `layer_boxes` (L, B, Q, 4), the last layer last. Masks come
    from `masks` (B, Q, h, w), logits over the padded canvas, or from what `mask_outputs` gives in their place.

    `scores` is "softmax" where one class more stands for nothing, `frame` what is 1: the picture, or the padded canvas.
    """

    detects = True
    scores: Literal["softmax", "sigmoid"] = "sigmoid"
    frame: Literal["picture", "canvas"] = "picture"
    label_loss = "loss_ce"

    def __init__(self, config: DetectionConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        if config.num_classes is None:
            raise UserError("a detection head needs num_classes: give it, or take it from the data")
        if any(level.time_stride is not None for level in levels):
            raise UserError("a detection head needs the maps of pictures, got levels with a time stride")
        self.config = config
        self.num_classes = config.num_classes
        self.query_masks: QueryMasks | None = None

    @abstractmethod
    def label_losses(self, logits: Tensor, boxes: Tensor, matches: Matches, targets: Targets, number: Tensor) -> Tensor:
        """logits: (L, B, Q, K), boxes: (L, B, Q, 4) -> (L,): what each layer's scores lose, not weighted."""

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Each is () in fp32, weighted: `loss_ce` (or its like), `loss_bbox`, `loss_giou` of the last decoder layer,
        and those of layer i before it with `_i` behind.
        """
        logits, boxes = layers_of(outputs)
        targets = self.read_targets(batch, logits)
        matches = self.match(logits, boxes, targets, batch)
        number = count_targets(targets)
        losses = self.stack_losses(logits, boxes, matches, targets, number)
        return losses | self.mask_losses(outputs, matches, targets, batch, number)

    def read_targets(self, batch: Batch, like: Tensor) -> Targets:
        """The batch's targets on the device and in the precision of `like`, in this head's frame."""
        return read_targets(batch, self.frames(batch, like), self.num_classes)

    def match(self, logits: Tensor, boxes: Tensor, targets: Targets, batch: Batch) -> Matches:
        """logits: (L, B, Q, K), boxes: (L, B, Q, 4) -> the pairs of each layer."""
        ids = batch.get("ids")
        return match(logits, boxes, targets, self.config.matcher, scores=self.scores, ids=ids)

    def stack_losses(
        self, logits: Tensor, boxes: Tensor, matches: Matches, targets: Targets, number: Tensor, suffix: str = ""
    ) -> dict[str, Tensor]:
        """Losses of a stack of layers (L, B, Q, ...): the last one's as they are called, the others' with `_i` behind;
        a `suffix` comes before it and numbers the last one too.
        """
        label = self.label_losses(logits, boxes, matches, targets, number)
        box, giou = box_losses(boxes, matches, targets, number)
        config, last = self.config, len(logits) - 1
        stacks = {self.label_loss: config.label_weight * label}
        stacks |= {"loss_bbox": config.box_weight * box, "loss_giou": config.giou_weight * giou}
        found = {}
        for name, values in stacks.items():
            for index, value in enumerate(values):
                found[name + suffix + ("" if index == last and not suffix else f"_{index}")] = value
        return found

    def mask_outputs(self, queries: Tensor, maps: Sequence[Tensor], batch: Batch) -> Outputs:
        """queries: (B, Q, C) of the last layer, maps finest first -> `masks` (B, Q, h, w), their two factors where only
        some queries' will be asked for, and nothing where the head has no `query_masks`.
        """
        if self.query_masks is None:
            return {}
        factors: Outputs = self.query_masks(queries, maps)
        return factors if self.training or batch.get("lean", False) else multiplied(factors)

    def mask_losses(
        self, outputs: Outputs, matches: Matches, targets: Targets, batch: Batch, number: Tensor
    ) -> dict[str, Tensor]:
        """`loss_mask` and `loss_dice` of the last layer's pairs, weighted; none where the head gives no masks."""
        if not self.config.masks:
            return {}
        mask, dice = mask_losses(outputs, matches, targets, batch, number)
        return {"loss_mask": self.config.mask_weight * mask, "loss_dice": self.config.dice_weight * dice}

    def frames(self, batch: Batch, like: Tensor) -> Tensor:
        """(B, 4): the (width, height, width, height) in pixels of the batch's images that boxes of 1 would have."""
        images = batch["images"]
        if self.frame == "picture" and "extents" in batch:
            sides = batch["extents"].to(like.device, like.dtype)
        else:
            sides = like.new_tensor(images.shape[-2:]).expand(len(images), 2)
        return sides.flip(-1).repeat(1, 2)

    @torch.no_grad()
    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """The `max_detections` best things of each picture, at batch["sizes"]; `sizes` are those of the originals."""
        logits, boxes = full_precision(outputs["logits"]), full_precision(outputs["boxes_cxcywh"])
        scores, labels, queries = self.best(logits)
        corners = to_corners(boxes.gather(1, queries[..., None].expand(-1, -1, 4)))  # (B, n, 4)
        extents = batch.get("extents")
        found: Predictions = []
        for index, (height, width) in enumerate(batch["sizes"]):
            whole = corners.new_tensor([width, height, width, height])
            scale = whole
            if self.frame == "canvas" and extents is not None:  # boxes reach over the padding too
                own = extents[index].to(corners).flip(-1).repeat(2)
                scale = whole * self.frames(batch, corners)[index] / own
            placed = torch.minimum((corners[index] * scale).clamp_min(0), whole)
            masks = None
            if has_masks(outputs):
                masks = masks_at(masks_of(outputs, index, queries[index]), (height, width), batch, index)
            found.append(Detections(placed, scores[index], labels[index], masks))
        return found

    def deploy(self, outputs: Outputs, size: tuple[int, int]) -> Outputs:
        """boxes (B, n, 4) xyxy in pixels of pictures of size (H, W), scores and labels (B, n), best first; with masks
        `masks` (B, n, h, w) too, logits at the head's stride.
        """
        scores, labels, queries = self.best(outputs["logits"])
        corners = to_corners(outputs["boxes_cxcywh"].gather(1, queries[..., None].expand(-1, -1, 4)))
        x, y = corners[..., 0::2] * size[1], corners[..., 1::2] * size[0]
        found = {"boxes": torch.stack([x, y], dim=-1).flatten(-2), "scores": scores, "labels": labels}
        if "masks" in outputs:
            masks = outputs["masks"]
            found["masks"] = masks.gather(1, queries[..., None, None].expand(-1, -1, *masks.shape[2:]))
        return found

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """logits: (B, Q, K) -> scores, labels and queries (B, n), best first: of each query its best class where one
        class more stands for nothing, else the best of all pairs of query and class.
        """
        if self.scores == "softmax":
            best, labels = logits.softmax(-1)[..., :-1].max(-1)
            scores, queries = best.topk(min(self.config.max_detections, best.shape[1]))
            return scores, labels.gather(1, queries), queries
        flat = logits.sigmoid().flatten(1)
        scores, places = flat.topk(min(self.config.max_detections, flat.shape[1]))
        return scores, places % logits.shape[-1], places // logits.shape[-1]


def layers_of(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Logits (L, B, Q, K) and boxes (L, B, Q, 4) of the layers there are, in float32 at least."""
    if "layer_logits" in outputs:
        return full_precision(outputs["layer_logits"]), full_precision(outputs["layer_boxes"])
    return full_precision(outputs["logits"])[None], full_precision(outputs["boxes_cxcywh"])[None]

"""What every depth head shares: SILog (https://arxiv.org/abs/1406.2283) and multi-scale gradient matching (MegaDepth,
https://arxiv.org/abs/1804.00607) over the pixels that were measured, and metres at any size."""

from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from vitdense.contracts import Batch, Head, HeadConfig, Level, Outputs, Predictions, require
from vitdense.errors import UserError
from vitdense.layers.embed import crop_rows_and_columns
from vitdense.ops.resizing import full_precision, resize

DepthLoss = Literal["silog", "gradient"]

# Added to both sides before the logarithm, as DINOv2's depth losses do: a head may give 0.
EPS = 1e-3
MEAN_WEIGHT = 0.15
SCALES = 4


class DepthConfig(HeadConfig):
    """Options of every head that gives `depth` (B, 1, h, w) in metres; `losses` maps names to weights.

    Depths outside `min_depth` to `max_depth` count as unknown, and predictions are clamped to that range.
    """

    min_depth: NonNegativeFloat = 1e-3
    max_depth: PositiveFloat = 10.0
    losses: dict[DepthLoss, NonNegativeFloat] = Field(default={"silog": 1.0, "gradient": 0.5}, min_length=1)

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.min_depth >= self.max_depth:
            raise ValueError(f"min_depth {self.min_depth} must be below max_depth {self.max_depth}")
        return self


class DepthHead(Head):
    """Losses and predictions from `depth` (B, 1, h, w)."""

    dense = "depth"

    def __init__(self, config: DepthConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        if any(level.time_stride is not None for level in levels):
            raise UserError("a depth head needs the maps of pictures, got levels with a time stride")
        self.num_classes = 0
        self.min_depth, self.max_depth = config.min_depth, config.max_depth
        self.weights = dict(config.losses)

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """`loss_silog` and `loss_gradient`, times their weights; () in fp32, 0 where nothing is known."""
        depth = check_depth(outputs["depth"], batch)
        predicted = full_precision(outputs["depth"])
        depth = depth.to(predicted.dtype)
        predicted = resize(predicted, (depth.shape[-2], depth.shape[-1]))[:, 0]  # (B, H, W)
        known = (depth > 0) & (depth >= self.min_depth) & (depth <= self.max_depth)
        apart = log_difference(predicted, depth, known)
        made = {"silog": silog, "gradient": gradient_matching}
        return {f"loss_{name}": weight * made[name](apart, known) for name, weight in self.weights.items()}

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """One (H, W) fp32 tensor of metres for each picture."""
        sizes = batch["sizes"]
        assert len(sizes) == len(outputs["depth"]), f"{len(sizes)} sizes for {len(outputs['depth'])} pictures"
        predictions: Predictions = []
        for depth, size in zip(outputs["depth"], sizes, strict=True):
            resized = resize(depth[None].float(), size)[0, 0]  # (H, W)
            predictions.append(resized.clamp(self.min_depth, self.max_depth))
        return predictions


def log_difference(predicted: Tensor, depth: Tensor, known: Tensor) -> Tensor:
    """predicted, depth, known: (B, H, W) -> log(predicted) - log(depth) where known, 0 elsewhere.

    What is unknown is replaced before the logarithm: a NaN there would come back through the gradient.
    """
    one = torch.ones((), dtype=depth.dtype, device=depth.device)
    theirs = torch.where(known, depth, one)
    ours = torch.where(known, predicted.clamp_min(0), one)
    return (ours + EPS).log() - (theirs + EPS).log()


def silog(apart: Tensor, known: Tensor) -> Tensor:
    """apart, known: (B, H, W) -> (): sqrt(var + 0.15 mean^2) of the log differences, as in DINOv2 and DINOv3.

    That is Eigen's loss with 0.85 for the mean's share, and a root; the variance is over n - 1 pixels.
    """
    count = known.sum().to(apart.dtype)
    # Unknown pixels are multiplied out, so that a batch without depth is 0 and still reaches every parameter.
    apart = apart * known
    mean = apart.sum() / count.clamp_min(1)
    variance = ((apart - mean).square() * known).sum() / (count - 1).clamp_min(1)
    squared = variance + MEAN_WEIGHT * mean.square()
    # The root has no slope at 0, where there is nothing to learn either.
    positive = squared > 0
    return torch.where(positive, squared, torch.ones_like(squared)).sqrt() * positive + squared * ~positive


def gradient_matching(apart: Tensor, known: Tensor) -> Tensor:
    """apart, known: (B, H, W) -> (): how much log differences change between neighbours, at four scales.

    At scale k every 2^k-th pixel is looked at; each scale's sum is divided by its known pixels, as in MiDaS.
    """
    totals = []
    for scale in range(SCALES):
        step = 2**scale
        some, there = apart[:, ::step, ::step], known[:, ::step, ::step]
        rows = (some[:, 1:] - some[:, :-1]).abs() * (there[:, 1:] & there[:, :-1])
        columns = (some[:, :, 1:] - some[:, :, :-1]).abs() * (there[:, :, 1:] & there[:, :, :-1])
        totals.append((rows.sum() + columns.sum()) / there.sum().clamp_min(1))
    return torch.stack(totals).sum()


def cut_to_picture(maps: Tensor, finest: Tensor, batch: Batch, *, stride: int, finer: int) -> Tensor:
    """maps: (B, C, H', W'), `finer` cells for each cell of the finest level -> those that lie on the picture.

    finest: (B, C, h, w) of that level, and of `stride`. Without the picture, or where its cells aren't whole pixels, as
    far as that level goes.
    """
    height, width = finest.shape[-2] * finer, finest.shape[-1] * finer
    if "images" in batch and stride % finer == 0:
        cell = stride // finer
        height, width = ((side + cell - 1) // cell for side in batch["images"].shape[-2:])
    return crop_rows_and_columns(maps, height, width, channels_last=False)


def check_depth(predicted: Tensor, batch: Batch) -> Tensor:
    """The batch's depth (B, H, W) in floats, or a UserError where it doesn't belong to its pictures."""
    require(batch, "depth", "a head of depth learns from depth")
    depth = batch["depth"]
    if not depth.is_floating_point():
        raise UserError(f"depth must be floats in metres with 0 where unknown, got {depth.dtype}")
    height_width = tuple(batch["images"].shape[-2:]) if "images" in batch else tuple(depth.shape[1:])
    expected = (len(predicted), *height_width)
    if tuple(depth.shape) != expected:
        raise UserError(f"depth must be (B, H, W) = {expected} as the pictures are, got {tuple(depth.shape)}")
    return depth

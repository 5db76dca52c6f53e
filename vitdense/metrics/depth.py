"""Errors of depth in metres (Eigen et al. 2014, https://arxiv.org/abs/1406.2283): by picture, then their mean."""

from collections.abc import Callable

import torch
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from vitdense.contracts import METRICS, Batch, Metric, MetricConfig, Predictions, Samples
from vitdense.errors import UserError
from vitdense.regions import Crop, crop_region

NAMES = ("d1", "d2", "d3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog_x100")
SMALLEST = 1e-3
"""Metres: what is predicted below counts as this much, or its logarithm would be infinite."""


@METRICS.register("depth")
class DepthErrorConfig(MetricConfig):
    """Pixels count whose truth lies between `min_depth` and `max_depth` (neither included) and inside `crop`;
    predictions are clipped to that range. `align` fits scale and shift to the truth of each picture first.
    """

    min_depth: NonNegativeFloat = 0.0
    max_depth: PositiveFloat | None = None
    crop: Crop = "none"
    align: bool = False

    @model_validator(mode="after")
    def _check(self) -> "DepthErrorConfig":
        if self.max_depth is not None and self.max_depth <= self.min_depth:
            raise ValueError(f"max_depth must lie above min_depth ({self.min_depth}), got {self.max_depth}")
        return self

    def build(self, samples: Samples | None = None) -> "DepthError":
        """A metric; it needs nothing from the data set."""
        return DepthError(self)


class DepthError(Metric):
    """Sums of each picture's errors; pictures without a single valid pixel are left out."""

    def __init__(self, config: DepthErrorConfig) -> None:
        self.config = config
        self.sums = torch.zeros(len(NAMES) + 1, dtype=torch.float64)  # the last entry counts pictures

    def update(self, predictions: Predictions, batch: Batch) -> None:
        """predictions: one (H, W) tensor of metres for each of batch["depth"] (B, H, W)."""
        if "depth" not in batch:
            raise UserError("metric 'depth' needs a data set with depth, such as rgbd or shapes_depth")
        for index, (prediction, truth) in enumerate(zip(predictions, batch["depth"], strict=True)):
            if prediction.shape != truth.shape:
                name = batch["ids"][index] if "ids" in batch else f"picture {index}"
                raise UserError(
                    f"{name}: the prediction is {tuple(prediction.shape)} and the depth {tuple(truth.shape)} (H, W)"
                )
            self.add(self.measure(prediction, truth))

    def measure(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """prediction, truth: (H, W) metres, 0 in the truth where unknown -> the picture's share of `sums`."""
        config = self.config
        region = crop_region(config.crop, (truth.shape[0], truth.shape[1]))
        truth, prediction = truth[region].cpu().double(), prediction[region].detach().cpu().double()
        valid = truth > config.min_depth
        if config.max_depth is not None:
            valid &= truth < config.max_depth
        truth, prediction = truth[valid], prediction[valid]
        if not truth.numel():
            return torch.zeros_like(self.sums)
        if config.align:
            prediction = aligned(prediction, truth)
        clipped = prediction.clamp(max(config.min_depth, SMALLEST), config.max_depth)
        return torch.cat([depth_errors(clipped, truth), torch.ones(1, dtype=torch.float64)])

    def add(self, share: Tensor) -> None:
        """Count one picture's share, as `measure` gave it."""
        self.sums += share

    @property
    def pictures(self) -> int:
        """How many pictures the means are over."""
        return int(self.sums[-1])

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Replace the sums by those over all processes."""
        self.sums = sum_over_processes(self.sums).cpu()

    def compute(self) -> dict[str, float]:
        """d1, d2, d3 in 0..1, abs_rel, sq_rel, rmse in metres, rmse_log, log10, silog_x100: means over pictures."""
        means = self.sums[:-1] / self.sums[-1]
        return dict(zip(NAMES, means.tolist(), strict=True))


def depth_errors(prediction: Tensor, truth: Tensor) -> Tensor:
    """prediction, truth: (N,) metres above 0 -> the errors of one picture, in the order of NAMES.

    silog is KITTI's, 100 sqrt(mean(e^2) - mean(e)^2) with e the difference of natural logarithms; mmsegmentation takes
    only half of mean(e)^2 off, and no 100.
    """
    ratio = torch.maximum(prediction / truth, truth / prediction)
    difference, logs = prediction - truth, prediction.log() - truth.log()
    spread = logs.square().mean() - logs.mean().square()
    return torch.stack(
        [
            *((ratio < 1.25**power).to(truth.dtype).mean() for power in (1, 2, 3)),
            (difference.abs() / truth).mean(),
            (difference.square() / truth).mean(),
            difference.square().mean().sqrt(),
            logs.square().mean().sqrt(),
            (prediction.log10() - truth.log10()).abs().mean(),
            100 * spread.clamp_min(0).sqrt(),
        ]
    )


def aligned(prediction: Tensor, truth: Tensor) -> Tensor:
    """prediction, truth: (N,) metres -> scale * prediction + shift with the least squared difference to the truth."""
    centred = prediction - prediction.mean()
    variance = centred.square().sum()
    scale = (centred * (truth - truth.mean())).sum() / torch.where(variance > 0, variance, torch.ones_like(variance))
    return centred * scale + truth.mean()

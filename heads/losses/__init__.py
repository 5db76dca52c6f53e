"""Losses of segmentation heads by name; importing this package makes every loss known."""

from heads.losses import boundary, cross_entropy, focal, lovasz, overlap  # noqa: F401  (each file registers its names)
from heads.losses.config import LOSSES, LossConfig, read_losses
from heads.losses.pixels import Pixels

__all__ = ["LOSSES", "LossConfig", "Pixels", "read_losses"]

"""Losses of segmentation heads by name; importing this package makes every loss known.

What a loss says of its memory is the peak of one forward and backward pass above its inputs, measured on a CPU at 20
classes, all present, 512 x 512, in tensors of B * K * H * W float32.
"""

from heads.losses import boundary, cross_entropy, focal, lovasz, overlap  # noqa: F401  (each file registers its names)
from heads.losses.config import LOSSES, LossConfig, read_losses
from heads.losses.pixels import Pixels

__all__ = ["LOSSES", "LossConfig", "Pixels", "read_losses"]

"""What a batch's pictures hold, laid out for losses: all targets in one row, boxes in 0..1."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from heads.detection.boxes import to_centres
from vitdense.contracts import Batch, require
from vitdense.errors import UserError


@dataclass(frozen=True)
class Targets:
    """N targets of a batch of B pictures, picture by picture: labels (N,), boxes (N, 4) as (cx, cy, w, h) in 0..1.

    pictures (N,) says whose each one is; counts are numbers of the host, so that nothing has to be read back.
    """

    labels: Tensor
    boxes: Tensor
    pictures: Tensor
    counts: tuple[int, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each picture's targets begin, and where the last one's end."""
        return (0, *accumulate(self.counts))


def read_targets(batch: Batch, frames: Tensor, num_classes: int) -> Targets:
    """The targets of a batch, their boxes divided by `frames` (B, 4), the (width, height, width, height) that is 1.

    UserError where there are none to learn from.
    """
    require(batch, "targets", "a detection head learns from boxes")
    given = batch["targets"]
    counts = tuple(len(target["labels"]) for target in given)
    labels = torch.cat([target["labels"] for target in given]).to(frames.device, torch.int64)
    corners = [target["boxes"].to(frames) / frame for target, frame in zip(given, frames, strict=True)]
    if not frames.is_cuda and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise UserError(f"labels reach from {int(labels.min())} to {int(labels.max())}, for {num_classes} classes")
    return Targets(labels, to_centres(torch.cat(corners)), picture_of_each(counts, frames.device), counts)


def picture_of_each(counts: Sequence[int], device: torch.device) -> Tensor:
    """counts of B pictures -> (N,) int64, the index of the picture that each of N targets is in."""
    owners = [index for index, count in enumerate(counts) for _ in range(count)]
    return torch.tensor(owners, dtype=torch.int64, device=device)

"""What a batch's pictures hold, as masks with classes: things and stuff, or each class of a map."""

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.detection.targets import Targets, picture_of_each
from vitdense.contracts import Batch
from vitdense.errors import UserError


def read_masks(batch: Batch, num_classes: int, device: torch.device) -> tuple[Targets, list[Tensor]]:
    """The targets of a batch, whose boxes nobody looks at, and their masks (N, H, W) bool, picture by picture, with
    nothing on the padding of the batch's images.

    Of a batch without targets each class of its maps is one. UserError where there are neither, or no masks.
    """
    canvas = (batch["images"].shape[-2], batch["images"].shape[-1])
    if "targets" in batch:
        given = [_of_target(index, batch, canvas) for index in range(len(batch["targets"]))]
    elif "masks" in batch:
        given = [_of_map(classes) for classes in batch["masks"]]
    else:
        raise UserError(f"masks are learned from targets or from maps of classes, the batch has {', '.join(batch)}")
    labels = torch.cat([each for each, _ in given]).to(device, torch.int64)
    if device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise UserError(f"labels reach from {int(labels.min())} to {int(labels.max())}, for {num_classes} classes")
    counts = tuple(len(each) for each, _ in given)
    targets = Targets(labels, torch.zeros(len(labels), 4, device=device), picture_of_each(counts, device), counts)
    return targets, [masks.to(device) for _, masks in given]


def _of_target(index: int, batch: Batch, canvas: tuple[int, int]) -> tuple[Tensor, Tensor]:
    target = batch["targets"][index]
    if "masks" not in target:
        raise UserError(f"masks are learned, but the targets of picture {index} have only {', '.join(target)}")
    height, width = target["masks"].shape[-2:]
    if height > canvas[0] or width > canvas[1]:
        raise UserError(f"masks of picture {index} are {(height, width)}, larger than its image {canvas}")
    return target["labels"], F.pad(target["masks"], (0, canvas[1] - width, 0, canvas[0] - height))


def _of_map(classes: Tensor) -> tuple[Tensor, Tensor]:
    """classes: (H, W), below 0 where unlabelled -> labels (N,) and masks (N, H, W)."""
    labels = torch.unique(classes)
    labels = labels[labels >= 0]
    return labels, classes == labels[:, None, None]

"""A whole video: frames one after the other, with what is remembered of those before."""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vitdense.contracts import Backbone
from vitdense.errors import DataError, UserError
from vitdense.propagation.config import PropagationConfig
from vitdense.propagation.features import check_backbone, features_of
from vitdense.propagation.labels import propagate_labels
from vitdense.propagation.masks import Mask, labels_of, mask_of


@torch.no_grad()
def propagate(
    backbone: Backbone, frames: Iterable[NDArray[np.uint8]], mask: ArrayLike, config: PropagationConfig | None = None
) -> Iterator[Mask]:
    """frames: (H, W, 3) each, mask: (H, W) of the first one, 0 for background -> a mask (H, W) for each frame.

    The first is the one that was given. Frames are looked at when their mask is asked for, and only features of the
    first and the last few stay. UserError for a mask without objects, DataError for a frame of another size.
    """
    chosen = config or PropagationConfig()
    check_backbone(backbone, chosen.level)
    first = np.asarray(mask)
    if first.ndim != 2 or first.dtype.kind not in "iu":
        raise UserError(f"a first mask is (H, W) of whole numbers, given {first.shape} in {first.dtype}")
    values = np.union1d([0], first).astype(np.int32)  # background, then objects
    if len(values) == 1:
        raise UserError("the first mask has no objects: all of it is 0, the background")
    was_training = backbone.training
    backbone.eval()
    try:
        yield from _follow(backbone, frames, first.astype(np.int32), values, chosen)
    finally:
        backbone.train(was_training)


def _follow(
    backbone: Backbone, frames: Iterable[NDArray[np.uint8]], first: Mask, values: Mask, config: PropagationConfig
) -> Iterator[Mask]:
    # Soft labels as they were found go on to the next frames; stretching them to 0..1 is for the mask alone.
    remembered: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=config.last_frames)
    start: tuple[torch.Tensor, torch.Tensor] | None = None
    for number, frame in enumerate(frames):
        if frame.shape[:2] != first.shape:
            raise DataError(f"frame {number} is {frame.shape[:2]}, the first mask is {first.shape} (H, W)")
        features = features_of(backbone, frame, config)
        if start is None:
            start = (features.vectors, labels_of(first, values, features))
            yield first
            continue
        sources, labels = (torch.stack(each) for each in zip(start, *remembered, strict=True))
        found = propagate_labels(
            features.vectors,
            sources,
            labels,
            neighbourhood=config.neighbourhood,
            topk=config.topk,
            temperature=config.temperature,
        )
        remembered.append((features.vectors, found))
        yield mask_of(found, values, features, (first.shape[0], first.shape[1]))

"""Predictions of videos by models that look at several frames at once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitdense import videos
from vitdense.errors import UserError
from vitdense.model import Model

Pixels = NDArray[np.uint8]


def frames_of(model: Model) -> int:
    """So many frames the model looks at; UserError where nobody said."""
    if model.inference.frames is None:
        raise UserError("a model of clips reads videos by inference.frames: set how many frames it learnt from")
    return model.inference.frames


def predict_clips(model: Model, file: Path) -> Iterator[tuple[Sequence[Pixels], Any]]:
    """All frames (H, W, 3) of a video in turn, with their prediction on the CPU: clip by clip where the head names one
    class of the whole, else each frame with its own."""
    if model.head.classifies:
        yield from _name_clips(model, file)
        return
    for frame, found in predict_frames(model, file):
        yield [frame], found


def predict_frames(model: Model, file: Path) -> Iterator[tuple[Pixels, Tensor]]:
    """Every frame (H, W, 3) of a video and its prediction (H, W) on the CPU, of clips of inference.frames frames.

    The last clip reaches back into the one before, so that it is whole; a shorter video is one clip.
    """
    length = frames_of(model)
    before: list[Pixels] = []
    for part in videos.read_parts(file, length):
        lacking = length - len(part)
        clip = before[len(before) - lacking :] + part if lacking and before else part
        found: Tensor = model.predict([np.stack(clip)])[0].cpu()  # (T, H, W)
        yield from zip(part, found[len(clip) - len(part) :], strict=True)
        before = part


def _name_clips(model: Model, file: Path) -> Iterator[tuple[list[Pixels], Tensor]]:
    """Logits (K,) of clips that the model sees every inference.frame_stride-th frame of; the last frame is held where
    the last clip is too short."""
    length, stride = frames_of(model), model.inference.frame_stride
    for part in videos.read_parts(file, length * stride):
        chosen = part[::stride]
        clip = chosen + [part[-1]] * (length - len(chosen))
        yield part, model.predict([np.stack(clip)])[0].cpu()

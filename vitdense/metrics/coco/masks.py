"""Masks in COCO's run lengths: from arrays, to arrays, and their areas, by pycocotools."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitdense.metrics.coco.things import Flags, Floats, Rle


def encode(masks: Flags) -> list[Rle]:
    """masks: (N, H, W) -> their run lengths."""
    from pycocotools import mask

    columns = np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)  # (H, W, N)
    encoded: list[Rle] = mask.encode(columns)
    return encoded


def decode(masks: Sequence[Rle]) -> Flags:
    """Run lengths of one size, one or more -> (N, H, W)."""
    from pycocotools import mask

    return np.asarray(mask.decode(list(masks)), dtype=np.bool_).transpose(2, 0, 1)


def areas_of(masks: Sequence[Rle]) -> Floats:
    """Pixels of each: (N,)."""
    from pycocotools import mask

    return np.concatenate([np.zeros(0), *(mask.area(part) for part in _portions(masks))]).astype(np.float64)


def boxes_of(masks: Sequence[Rle]) -> Floats:
    """The boxes around them: (N, 4) xywh."""
    from pycocotools import mask

    return np.concatenate([np.zeros((0, 4)), *(mask.toBbox(part) for part in _portions(masks))])


def as_bytes(masks: Sequence[Rle]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All counts in a row, and the number of bytes of each; see `from_bytes`."""
    counts = [mask["counts"] for mask in masks]
    return np.frombuffer(b"".join(counts), np.uint8).copy(), np.array([len(each) for each in counts], np.int64)


def from_bytes(counts: NDArray[np.uint8], lengths: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[Rle]:
    """counts: those of all in a row; lengths (N,); sizes (N, 2) as H, W -> the masks."""
    parts = cut(counts.tobytes(), lengths)
    return [Rle(size=size, counts=part) for size, part in zip(sizes.tolist(), parts, strict=True)]


def cut(whole: bytes, lengths: NDArray[np.int64]) -> list[bytes]:
    """Parts of these lengths, one after the other."""
    ends = np.cumsum(lengths)
    return [whole[low:high] for low, high in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]


def _portions(masks: Sequence[Rle]) -> list[list[Rle]]:
    """Few enough for pycocotools, which keeps four times their number in eight bits and raises beyond."""
    return [list(masks[start : start + 60]) for start in range(0, len(masks), 60)]

"""What was found and what is true, picture by picture, as few tensors that any process can send."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitdense.contracts import Detections, Target
from vitdense.metrics.coco.masks import areas_of, as_bytes, cut, encode, from_bytes
from vitdense.metrics.coco.things import FoundThings, Rle, TrueThings

_COLUMNS: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "ids": ((), torch.uint8),
    "id_lengths": ((), torch.int64),
    "numbers": ((2,), torch.int64),  # found and true things of each picture
    "found": ((6,), torch.float64),  # xywh, score, label
    "true": ((7,), torch.float64),  # xywh, label, area, crowd
    "sizes": ((2,), torch.int64),  # of each picture's masks
    "found_masks": ((), torch.uint8),
    "found_lengths": ((), torch.int64),
    "true_masks": ((), torch.uint8),
    "true_lengths": ((), torch.int64),
}


class Records:
    """Rows of all pictures seen, appended in no order; `things` puts them in that of their ids."""

    def __init__(self, *, masks: bool) -> None:
        self.masks = masks
        self._parts = {name: [torch.zeros(0, *shape, dtype=kind)] for name, (shape, kind) in _COLUMNS.items()}

    def add(self, name: str | None, found: Detections, target: Target) -> None:
        """One picture; with `masks`, both sides have masks (N, H, W) of one size. name: its id, where it has one."""
        text = np.frombuffer((name or "").encode(), np.uint8).copy()
        self._append("ids", torch.from_numpy(text))
        self._append("id_lengths", torch.tensor([len(text)]))
        self._append("numbers", torch.tensor([[len(found), len(target["labels"])]]))
        self._append("found", torch.cat([_xywh(found.boxes), _columns(found.scores, found.labels)], dim=1))
        boxes, labels = _xywh(target["boxes"]), target["labels"]
        areas = target["areas"] if "areas" in target else boxes[:, 2] * boxes[:, 3]
        crowd = target["crowd"] if "crowd" in target else torch.zeros_like(labels)
        self._append("true", torch.cat([boxes, _columns(labels, areas, crowd)], dim=1))
        if self.masks:
            assert found.masks is not None
            self._append("sizes", torch.tensor([list(found.masks.shape[1:])]))
            for side, masks in (("found", found.masks), ("true", target["masks"])):
                counts, lengths = as_bytes(encode(masks.cpu().numpy().astype(np.bool_, copy=False)))
                self._append(f"{side}_masks", torch.from_numpy(counts))
                self._append(f"{side}_lengths", torch.from_numpy(lengths))

    def gather(self, gather_from_processes: Callable[[Tensor], Tensor]) -> None:
        """Those of all processes."""
        self._parts = {name: [gather_from_processes(self._whole(name)).cpu()] for name in self._parts}

    def things(self) -> tuple[TrueThings, FoundThings, int]:
        """What is true, what was found, and how many pictures there are; one that was seen twice counts once."""
        order = self._order()
        numbers = self._array("numbers")
        found_rows, found_pictures = _take_runs(numbers[:, 0], order)
        true_rows, true_pictures = _take_runs(numbers[:, 1], order)
        found, true = self._array("found")[found_rows], self._array("true")[true_rows]
        found_masks, true_masks = (
            self._masks(side, numbers[:, column], rows)
            for column, (side, rows) in enumerate((("found", found_rows), ("true", true_rows)))
        )
        areas = found[:, 2] * found[:, 3]
        truth = TrueThings(
            true_pictures, true[:, 4].astype(np.int64), true[:, :4], true[:, 5], true[:, 6] > 0, true_masks
        )
        things = FoundThings(
            found_pictures, found[:, 5].astype(np.int64), found[:, :4], found[:, 4], areas, found_masks
        )
        return truth, things, len(order)

    def _append(self, name: str, rows: Tensor) -> None:
        self._parts[name].append(rows.detach().cpu())

    def _whole(self, name: str) -> Tensor:
        self._parts[name] = [torch.cat(self._parts[name])]
        return self._parts[name][0]

    def _array(self, name: str) -> NDArray[Any]:
        return self._whole(name).numpy()

    def _order(self) -> list[int]:
        """Places of the pictures by their ids, numbers before words; those without one come last, as they came."""
        names = [part.decode() for part in cut(self._array("ids").tobytes(), self._array("id_lengths"))]
        first: dict[str, int] = {}
        for place, name in enumerate(names):
            first.setdefault(name, place)
        named = sorted((_key(name), place) for name, place in first.items() if name)
        return [place for _, place in named] + [place for place, name in enumerate(names) if not name]

    def _masks(self, side: str, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> list[Rle] | None:
        if not self.masks:
            return None
        sizes = np.repeat(self._array("sizes"), numbers, axis=0)
        masks = from_bytes(self._array(f"{side}_masks"), self._array(f"{side}_lengths"), sizes)
        return [masks[row] for row in rows.tolist()]


def by_masks(found: FoundThings) -> FoundThings:
    """The same with the areas of their masks."""
    assert found.masks is not None
    return replace(found, areas=areas_of(found.masks))


def _key(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def _xywh(boxes: Tensor) -> Tensor:
    """boxes: (N, 4) xyxy -> (N, 4) xywh in float64."""
    corners = boxes.detach().cpu().double().reshape(-1, 4)
    return torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)


def _columns(*values: Tensor) -> Tensor:
    """Tensors (N,) -> (N, columns) in float64."""
    return torch.stack([value.detach().cpu().double() for value in values], dim=1)


def _take_runs(numbers: NDArray[np.int64], order: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """numbers: rows of each picture -> the rows of pictures in `order`, and which place of it each belongs to."""
    starts, taken = np.cumsum(numbers) - numbers, numbers[order]
    before = np.cumsum(taken) - taken
    rows = np.arange(taken.sum()) + np.repeat(starts[order] - before, taken)
    return rows, np.repeat(np.arange(len(order)), taken)

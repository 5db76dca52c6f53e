"""Where the pixels and boxes of a picture go: a window of it, resized, mirrored, and put somewhere on a canvas."""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdense.data.transforms import Pixels, resize_image

Size = tuple[int, int]
Boxes = NDArray[np.float64]
"""(N, 4) xyxy in pixels, whose edges lie between pixels: a box around the whole of a picture is (0, 0, W, H)."""

SHRINKS = (8, 4, 2)
"""What a JPEG may be divided by while it is decoded."""


@dataclass(frozen=True)
class View:
    """`window` (top, left, bottom, right) of a picture at `size` (h, w), with its corner at `place` (top, left).

    Everything moves by the same numbers, so that boxes and outlines stay on their pixels.
    """

    window: tuple[int, int, int, int]
    size: Size
    place: Size = (0, 0)
    flip: bool = False

    def points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 2) as (x, y) in the picture -> in the view, from its own corner."""
        top, left, bottom, right = self.window
        height, width = self.size
        x = (points[..., 0] - left) * (width / (right - left))
        y = (points[..., 1] - top) * (height / (bottom - top))
        return np.stack([width - x if self.flip else x, y], axis=-1)

    def boxes(self, boxes: Boxes) -> Boxes:
        """(N, 4) in the picture -> (N, 4) on the canvas, not cut."""
        corners = self.points(boxes.reshape(-1, 2, 2))  # (N, 2, 2)
        shift = np.array(self.place[::-1], np.float64)
        return np.concatenate([corners.min(1) + shift, corners.max(1) + shift], axis=1)

    def cut(self, pixels: NDArray[np.uint8], shrink: int = 1) -> Pixels:
        """pixels: (H, W, 3) of the picture, or of the picture divided by `shrink` -> (h, w, 3)."""
        top, left, bottom, right = (side // shrink for side in self.window)
        return self.mirror(resize_image(pixels[top:bottom, left:right], self.size))

    def cut_mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """mask: (H, W) -> (h, w), the exactly nearest pixels."""
        top, left, bottom, right = self.window
        size = (self.size[1], self.size[0])
        nearest = cv2.resize(mask[top:bottom, left:right], size, interpolation=cv2.INTER_NEAREST_EXACT)
        return self.mirror(np.asarray(nearest, np.uint8))

    def mirror(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(h, w, ...) the right way round."""
        return np.asarray(cv2.flip(pixels, 1), np.uint8) if self.flip else pixels

    def put(self, canvas: NDArray[Any], pixels: NDArray[Any]) -> None:
        """Writes (h, w, ...) at its place."""
        (top, left), (height, width) = self.place, self.size
        canvas[top : top + height, left : left + width] = pixels

    def shrink(self) -> int:
        """By how much the picture may be divided before the view needs more pixels than are left."""
        top, left, bottom, right = self.window
        height, width = self.size
        most = min((bottom - top) / height, (right - left) / width)
        return next((shrink for shrink in SHRINKS if shrink <= most), 1)

    def snapped(self, shrink: int) -> "View":
        """The same with a window of whole pixels of the picture divided by `shrink`; the last may lie half outside."""
        top, left, bottom, right = self.window
        starts, ends = (top // shrink, left // shrink), (-(-bottom // shrink), -(-right // shrink))
        return replace(self, window=(starts[0] * shrink, starts[1] * shrink, ends[0] * shrink, ends[1] * shrink))


def frame_view(picture: Size, frame: tuple[int, int, int, int], canvas: Size, *, flip: bool) -> View:
    """What is seen of a picture (H, W) in a frame (top, left, bottom, right), which may reach out of it and is
    stretched over the canvas (H, W).
    """
    window, place, size = [0, 0, 0, 0], [0, 0], [0, 0]
    for axis in (0, 1):
        first, last = max(frame[axis], 0), min(frame[axis + 2], picture[axis])
        factor = canvas[axis] / (frame[axis + 2] - frame[axis])
        place[axis] = min(round((first - frame[axis]) * factor), canvas[axis] - 1)
        size[axis] = max(round((last - frame[axis]) * factor) - place[axis], 1)
        window[axis], window[axis + 2] = first, last
    top, left, bottom, right = window
    return View((top, left, bottom, right), (size[0], size[1]), (place[0], place[1]), flip)


def seen(
    boxes: Boxes, view: View, *, visibility: float, by_centre: bool, side: float
) -> tuple[Boxes, NDArray[np.intp]]:
    """boxes: (N, 4) inside the picture -> (M, 4) on the canvas, cut at the view's rim, and the indices (M,) of those
    that stay: their centre is in the window, or `visibility` of their area, and no side is below `side` pixels.
    """
    top, left, bottom, right = view.window
    low, high = np.array([left, top], np.float64), np.array([right, bottom], np.float64)
    first, last = np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high)
    sides = np.maximum(last - first, 0.0)
    scale = np.array([view.size[1], view.size[0]]) / (high - low)
    stays = (sides > 0).all(1) & (sides * scale >= side).all(1)
    if by_centre:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        stays &= ((centres >= low) & (centres < high)).all(1)
    else:
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        stays &= sides.prod(1) >= visibility * areas
    kept = np.flatnonzero(stays)
    return view.boxes(np.concatenate([first, last], axis=1)[kept]), kept

"""How training pictures with boxes are cut, resized and joined: each kind draws views, and no pixel is touched here."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from vitdense.data.boxes.iou_crop import iou_crop
from vitdense.data.boxes.records import Record
from vitdense.data.boxes.views import Boxes, Size, View, frame_view, seen
from vitdense.data.transforms import CROP_TRIES, base_factor
from vitdense.registry import Config

Extent = PositiveInt | tuple[PositiveInt, PositiveInt]
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Tile:
    """A view of the picture at `index` of the data set."""

    index: int
    view: View


@dataclass(frozen=True)
class Layout:
    """What a sample shows: views on a canvas (H, W)."""

    canvas: Size
    tiles: tuple[Tile, ...]


class BoxAugment(Config):
    """What all kinds have: mirroring, photometric distortion, and which boxes stay when a view cuts them: those with
    their centre in it (`keep: centre`), or `min_visibility` of their area; and no side below `min_side` pixels.
    """

    flip: bool = True
    photometric: bool = False
    keep: Literal["visible", "centre"] = "visible"
    min_visibility: float = Field(default=0.1, ge=0.0, le=1.0)
    min_side: NonNegativeFloat = 1.0

    @property
    def by_centre(self) -> bool:
        """Whether the centre decides."""
        return self.keep == "centre"

    @property
    def canvas(self) -> Size | None:
        """The (H, W) that every batch is padded to, where pictures may be smaller than that."""
        return None

    def layout(self, generator: np.random.Generator, index: int, records: Sequence[Record]) -> Layout:
        """What sample `index` shows this time: a view of its picture, another one where it would lose all boxes."""
        record = records[index]
        boxes = record.inside()[~record.crowd]
        for _ in range(CROP_TRIES):
            view, canvas = self.draw(generator, record.size, boxes)
            if not len(boxes) or len(self.kept(boxes, view)):
                break
        return Layout(canvas, (Tile(index, view),))

    def kept(self, boxes: Boxes, view: View) -> NDArray[np.intp]:
        """Indices of the boxes (N, 4) of a picture that a view shows."""
        _, kept = seen(boxes, view, visibility=self.min_visibility, by_centre=self.by_centre, side=self.min_side)
        return kept

    @abstractmethod
    def draw(self, generator: np.random.Generator, size: Size, boxes: Boxes) -> tuple[View, Size]:
        """A view of a picture of (H, W) with boxes (N, 4), and its canvas."""

    def mirrors(self, generator: np.random.Generator) -> bool:
        """Half of the time, where pictures are mirrored at all."""
        return bool(generator.random() < 0.5) and self.flip


class NoAugment(BoxAugment):
    """The picture as it is, for a look at a data set and for learning a few pictures by heart."""

    kind: Literal["none"] = "none"
    flip: bool = False

    def draw(self, generator: np.random.Generator, size: Size, boxes: Boxes) -> tuple[View, Size]:
        """The whole of it."""
        return View((0, 0, *size), size, flip=self.mirrors(generator)), size


class DetrAugment(BoxAugment):
    """DETR's (Carion et al. 2020, https://arxiv.org/abs/2005.12872): the short side one of `short`, the long one up to
    `long_max`; with `crop_chance` after a crop with sides drawn from `crop_sides`, of the picture at a `crop_short`.
    """

    kind: Literal["detr"] = "detr"
    short: tuple[PositiveInt, ...] = Field(default=tuple(range(480, 801, 32)), min_length=1)
    long_max: PositiveInt | None = 1333
    crop_chance: float = Field(default=0.5, ge=0.0, le=1.0)
    crop_short: tuple[PositiveInt, ...] = Field(default=(400, 500, 600), min_length=1)
    crop_sides: tuple[PositiveInt, PositiveInt] = (384, 600)

    @field_validator("crop_sides")
    @classmethod
    def _check_order(cls, sides: tuple[int, int]) -> tuple[int, int]:
        return _ordered(sides)

    def draw(self, generator: np.random.Generator, size: Size, boxes: Boxes) -> tuple[View, Size]:
        """Both resizings are one: the crop is taken from the picture itself."""
        top, left, sides = 0, 0, size
        if generator.random() < self.crop_chance:
            factor = generator.choice(self.crop_short) / min(size)
            sides = (self._side(generator, size[0], factor), self._side(generator, size[1], factor))
            top, left = (int(generator.integers(size[axis] - sides[axis] + 1)) for axis in (0, 1))
        factor = base_factor(sides, int(generator.choice(self.short)), self.long_max)
        canvas = (max(1, round(sides[0] * factor)), max(1, round(sides[1] * factor)))
        window = (top, left, top + sides[0], left + sides[1])
        return View(window, canvas, flip=self.mirrors(generator)), canvas

    def _side(self, generator: np.random.Generator, side: int, factor: float) -> int:
        """A side of the crop in pixels of the picture; at `factor` it lies in `crop_sides`, or is all there is."""
        scaled = max(1, round(side * factor))
        low, high = (min(limit, scaled) for limit in self.crop_sides)
        return min(side, max(1, round(int(generator.integers(low, high + 1)) / factor)))


class JitterAugment(BoxAugment):
    """Large-scale jitter (Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177): the picture fitted into `size`, times
    a factor in `scale`, cut to `size` where it is larger; where it is smaller the batch pads it.
    """

    kind: Literal["jitter"] = "jitter"
    size: Extent = 1024
    scale: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)

    @field_validator("scale")
    @classmethod
    def _check_order(cls, scale: tuple[float, float]) -> tuple[float, float]:
        return _ordered(scale)

    @property
    def canvas(self) -> Size | None:
        """The size that is asked for."""
        return _pair(self.size)

    def draw(self, generator: np.random.Generator, size: Size, boxes: Boxes) -> tuple[View, Size]:
        """A window of at most `size`, at a random place."""
        most = _pair(self.size)
        factor = min(most[0] / size[0], most[1] / size[1]) * generator.uniform(*self.scale)
        window, canvas = _fitted(generator, size, most, factor)
        return View(window, canvas, flip=self.mirrors(generator)), canvas


class StretchAugment(BoxAugment):
    """RT-DETR's (Zhao et al. 2023, https://arxiv.org/abs/2304.08069): a zoom out on a canvas of up to `zoom_out` times
    the sides, a crop as SSD's, and all of it stretched to `size`, or to one of `sizes`, which a batch pads.
    """

    kind: Literal["stretch"] = "stretch"
    photometric: bool = True
    keep: Literal["visible", "centre"] = "centre"
    size: Extent = 640
    sizes: tuple[Extent, ...] = ()
    zoom_out: float = Field(default=4.0, ge=1.0)
    zoom_chance: float = Field(default=0.5, ge=0.0, le=1.0)
    crop_chance: float = Field(default=0.8, ge=0.0, le=1.0)

    @property
    def canvas(self) -> Size | None:
        """The largest of several sizes."""
        pairs = [_pair(size) for size in self.sizes]
        return (max(pair[0] for pair in pairs), max(pair[1] for pair in pairs)) if len(set(pairs)) > 1 else None

    def draw(self, generator: np.random.Generator, size: Size, boxes: Boxes) -> tuple[View, Size]:
        """A frame around the picture, a crop of that, stretched."""
        sizes = self.sizes or (self.size,)
        canvas = _pair(sizes[int(generator.integers(len(sizes)))])
        frame = (0, 0, *size)
        if generator.random() < self.zoom_chance:
            factor = generator.uniform(1.0, self.zoom_out)
            tall, wide = round(size[0] * factor), round(size[1] * factor)
            top, left = -int(generator.integers(tall - size[0] + 1)), -int(generator.integers(wide - size[1] + 1))
            frame = (top, left, top + tall, left + wide)
        if generator.random() < self.crop_chance:
            frame = iou_crop(generator, frame, boxes)
        if frame[0] >= size[0] or frame[1] >= size[1] or frame[2] <= 0 or frame[3] <= 0:  # nothing but padding
            frame = (0, 0, *size)
        return frame_view(size, frame, canvas, flip=self.mirrors(generator)), canvas


class MosaicAugment(BoxAugment):
    """Four pictures around a point of a canvas of `size` (Bochkovskiy et al. 2020, https://arxiv.org/abs/2004.10934),
    each fitted into it, times a factor in `scale`, and cut to its quarter; else one, as `jitter` has it.

    The three others are drawn from the whole data set by (seed, epoch, index), as everything is.
    """

    kind: Literal["mosaic"] = "mosaic"
    photometric: bool = True
    size: Extent = 640
    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.5)
    chance: float = Field(default=1.0, ge=0.0, le=1.0)
    centre: tuple[PositiveFloat, PositiveFloat] = (0.25, 0.75)

    @field_validator("scale", "centre")
    @classmethod
    def _check_order(cls, scale: tuple[float, float]) -> tuple[float, float]:
        return _ordered(scale)

    @field_validator("centre")
    @classmethod
    def _check_inside(cls, centre: tuple[float, float]) -> tuple[float, float]:
        if centre[1] >= 1:
            raise ValueError(f"the point lies inside the canvas: shares below 1, got {list(centre)}")
        return centre

    @property
    def canvas(self) -> Size | None:
        """The size, where single pictures may be smaller."""
        return _pair(self.size) if self.chance < 1 else None

    def layout(self, generator: np.random.Generator, index: int, records: Sequence[Record]) -> Layout:
        """Four tiles, or one."""
        if generator.random() >= self.chance:
            return super().layout(generator, index, records)
        canvas = _pair(self.size)
        middle = [min(max(1, round(side * generator.uniform(*self.centre))), max(side - 1, 1)) for side in canvas]
        others = generator.integers(len(records), size=3).tolist()
        tiles = []
        for place, each in enumerate((index, *others)):
            low = (place // 2 == 1, place % 2 == 1)  # in the lower half, in the right half
            room = tuple(canvas[axis] - middle[axis] if low[axis] else middle[axis] for axis in (0, 1))
            size = records[each].size
            factor = min(canvas[0] / size[0], canvas[1] / size[1]) * generator.uniform(*self.scale)
            window, shown = _fitted(generator, size, (max(room[0], 1), max(room[1], 1)), factor)
            top, left = (middle[axis] if low[axis] else middle[axis] - shown[axis] for axis in (0, 1))
            tiles.append(Tile(each, View(window, shown, (top, left), self.mirrors(generator))))
        return Layout(canvas, tuple(tiles))

    def draw(self, generator: np.random.Generator, size: Size, boxes: Boxes) -> tuple[View, Size]:
        """One picture alone."""
        jitter = JitterAugment(size=self.size, scale=self.scale, flip=self.flip)
        return jitter.draw(generator, size, boxes)


def _fitted(
    generator: np.random.Generator, size: Size, most: Size, factor: float
) -> tuple[tuple[int, int, int, int], Size]:
    """A window at a random place of a picture (H, W), and its size, `most` at most, when multiplied by `factor`."""
    shown, window, start = [0, 0], [0, 0], [0, 0]
    for axis in (0, 1):
        shown[axis] = min(max(1, round(size[axis] * factor)), most[axis])
        window[axis] = min(size[axis], max(1, round(shown[axis] / factor)))
        start[axis] = int(generator.integers(size[axis] - window[axis] + 1))
    return (start[0], start[1], start[0] + window[0], start[1] + window[1]), (shown[0], shown[1])


def _pair(extent: int | tuple[int, int]) -> Size:
    return (extent, extent) if isinstance(extent, int) else extent


def _ordered(pair: tuple[N, N]) -> tuple[N, N]:
    if pair[0] > pair[1]:
        raise ValueError(f"the smallest comes first, got {list(pair)}")
    return pair

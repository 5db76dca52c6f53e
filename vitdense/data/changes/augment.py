"""Training augmentation of pairs: one geometry for both pictures and the mask, colours of each or shared."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vitdense.contracts import IGNORE
from vitdense.data.transforms import PAD_COLOUR, Colours, Geometry, Mask, Pixels, cut, pad

Kind = TypeVar("Kind", bound=np.generic)


class PairAugment:
    """Before and after (H, W, 3) and mask (H, W) -> the same at the crop's size, drawn from (seed, epoch, index) alone.

    `quarter_turns` turns by 0, 90, 180 or 270 degrees, `swap` exchanges before and after in half of the pairs.
    """

    def __init__(
        self,
        geometry: Geometry,
        colours: Colours | None,
        *,
        seed: int,
        shared_colours: bool = False,
        quarter_turns: bool = False,
        swap: bool = False,
    ) -> None:
        self.geometry, self.colours, self.seed = geometry, colours, seed
        self.shared_colours, self.quarter_turns, self.swap = shared_colours, quarter_turns, swap

    def __call__(
        self, before: Pixels, after: Pixels, mask: Mask, *, epoch: int, index: int
    ) -> tuple[Pixels, Pixels, Mask]:
        """Cut, resize, flip, turn, swap, recolour, pad; equal (seed, epoch, index) give equal pixels in any worker."""
        generator = np.random.default_rng([self.seed, epoch, index])
        place = int(generator.integers(2**63))  # the same draws for both: OpenCV resizes four channels at most
        cuts = [cut(each, mask, self.geometry, np.random.default_rng(place)) for each in (before, after)]
        pictures, mask = [picture for picture, _ in cuts], cuts[0][1]
        flips = self.geometry.flip and generator.random() < 0.5
        turns = int(generator.integers(4)) if self.quarter_turns else 0
        pictures = [_turned(picture, turns, flips=flips) for picture in pictures]
        if self.swap and generator.random() < 0.5:
            pictures.reverse()
        if self.colours is not None:
            seeds = generator.integers(2**31, size=2).tolist()
            seeds = [seeds[0]] * 2 if self.shared_colours else seeds
            pictures = [self.colours(picture, seed) for picture, seed in zip(pictures, seeds, strict=True)]
        before, after = (pad(picture, self.geometry.crop, PAD_COLOUR) for picture in pictures)
        return before, after, pad(_turned(mask, turns, flips=flips), self.geometry.crop, IGNORE)


def _turned(array: NDArray[Kind], turns: int, *, flips: bool) -> NDArray[Kind]:
    """(h, w, ...) mirrored or not, then turned by quarters."""
    return np.ascontiguousarray(np.rot90(array[:, ::-1] if flips else array, turns))

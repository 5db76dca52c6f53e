"""What a publisher does to a picture before its network sees it: the size it is brought to, and how."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]


@dataclass(frozen=True)
class Preprocess:
    """Called on a PIL picture it gives an RGB one; pixels are normalised by the model, with its own statistics.

    `mode` "squash" stretches to `size` (height, width). "shortest" keeps the shape, resizes the short side to
    `short_side`, or so that `size` is just covered, and cuts `size` out of the middle. "longest" keeps the shape, fits
    the picture into `size` and fills the rest with `fill`. "patches" is SigLIP 2's for pictures of any shape
    (https://arxiv.org/abs/2502.14786): sides are multiples of `patch`, near the picture's shape, of no more patches
    than `size` has.

    The libraries differ in details, in which `like` follows the one that published the model: transformers lays what is
    transparent on white and converts to RGB before it resizes, open_clip behind that; where the rest of a cut is odd,
    transformers leaves the larger half at the right and bottom, open_clip rounds half to even.
    """

    size: Size
    mode: Literal["squash", "shortest", "longest", "patches"]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    short_side: int | None = None
    patch: int = 1
    fill: int = 0
    like: Literal["open_clip", "transformers"] = "open_clip"

    def __call__(self, picture: "Image.Image") -> "Image.Image":
        """A picture of any size and mode -> RGB of `size`; of about as many pixels for "patches"."""
        # Imported here: only those who have pictures need it.
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import resize

        if self.like == "transformers":
            picture = _on_white(picture)
        size = self.resized((picture.height, picture.width))
        found = self._cut(resize(picture, list(size), InterpolationMode(self.interpolation)))
        return found.convert("RGB")

    def resized(self, size: Size) -> Size:
        """A picture's (height, width) -> that which it is resized to, before anything is cut or filled."""
        if self.mode == "squash":
            return self.size
        if self.mode == "patches":
            return self._in_patches(size)
        if self.mode == "shortest" and (self.short_side or self.size[0] == self.size[1]):
            short = self.short_side or self.size[0]
            long = int(short * max(size) / min(size))
            return (short, long) if size[0] <= size[1] else (long, short)
        ratios = [given / wanted for given, wanted in zip(size, self.size, strict=True)]
        ratio = min(ratios) if self.mode == "shortest" else max(ratios)
        return round(size[0] / ratio), round(size[1] / ratio)

    def _in_patches(self, size: Size) -> Size:
        """The largest scale at which whole patches are few enough, to 1e-5, as transformers looks for it."""
        most = (self.size[0] // self.patch) * (self.size[1] // self.patch)

        def patches(scale: float) -> Size:
            down, across = (max(math.ceil(side * scale / self.patch), 1) for side in size)
            return down, across

        low, high = 1e-6, 100.0
        while high - low >= 1e-5:
            scale = (low + high) / 2
            low, high = (scale, high) if math.prod(patches(scale)) <= most else (low, scale)
        down, across = patches(low)
        return down * self.patch, across * self.patch

    def _cut(self, picture: "Image.Image") -> "Image.Image":
        """The middle of a picture, after it was filled to `size` where it is smaller."""
        from torchvision.transforms.functional import crop, pad

        if self.mode in ("squash", "patches"):
            return picture
        height, width = self.size
        lacking = max(width - picture.width, 0), max(height - picture.height, 0)
        if any(lacking):
            # The odd line is filled at the right and bottom, by transformers at the left and top.
            before = [(lack + (self.like == "transformers")) // 2 for lack in lacking]
            after = [lack - first for lack, first in zip(lacking, before, strict=True)]
            picture = pad(picture, [*before, *after], fill=self.fill)
        over = (picture.height - height, picture.width - width)
        top, left = (n // 2 if self.like == "transformers" else round(n / 2) for n in over)
        cut: Image.Image = crop(picture, top, left, height, width)
        return cut


def _on_white(picture: "Image.Image") -> "Image.Image":
    """A picture of any mode -> RGB."""
    from PIL import Image

    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")

"""Four plain maps to four strides by transposed convolutions and pooling, as BEiT's UperNet and mmsegmentation's
Feature2Pyramid do (https://arxiv.org/abs/2106.08254)."""

from torch import Tensor, nn

from vitdense.adapters.frames import over_frames
from vitdense.adapters.grids import LATTICE, STRIDES, check_plain, crop_to, resample
from vitdense.contracts import ADAPTERS, Adapter, AdapterConfig, Level
from vitdense.errors import UserError


@ADAPTERS.register("feature2pyramid")
class Feature2PyramidConfig(AdapterConfig):
    """Strides 4, 8, 16 and 32 of the backbone's channels, from four plain maps: the first becomes the finest.

    Maps of another stride than 16 are resampled to 16 first.
    """

    def build(self, levels: tuple[Level, ...]) -> Adapter:
        """A pyramid for four levels of one stride."""
        check_plain("feature2pyramid", levels)
        if len(levels) != len(STRIDES):
            raise UserError(
                f"feature2pyramid takes {len(STRIDES)} maps, and the backbone gives {len(levels)}: change its "
                "out_indices, or take `adapter: {name: simple_pyramid}`, which needs the last map only"
            )
        return over_frames(Feature2Pyramid(levels), levels)


class Feature2Pyramid(Adapter):
    """Twice up with batch norm and GELU between, once up, as it is, and down by pooling."""

    def __init__(self, levels: tuple[Level, ...]) -> None:
        super().__init__()
        self.levels = tuple(Level(level.channels, stride) for level, stride in zip(levels, STRIDES, strict=True))
        self.patch = levels[0].stride
        finest, finer = levels[0].channels, levels[1].channels
        self.fpn1 = nn.Sequential(_up(finest), nn.BatchNorm2d(finest), nn.GELU(), _up(finest))
        self.fpn2 = nn.Sequential(_up(finer))
        self.fpn3 = nn.Identity()
        # Odd maps keep their last row and column: ceil(H / 32) cells, not floor.
        self.fpn4 = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)

    def forward(self, maps: list[Tensor], images: Tensor) -> list[Tensor]:
        """maps: four of (B, C, h, w), images: (B, C, H, W) -> [(B, C, ceil(H / s), ceil(W / s))] for s in STRIDES."""
        stages = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        return [
            crop_to(stage(resample(each, self.patch, LATTICE)), images, stride)
            for stage, each, stride in zip(stages, maps, STRIDES, strict=True)
        ]


def _up(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)

"""The simple feature pyramid of ViTDet: four strides from one plain map (https://arxiv.org/abs/2203.16527)."""

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from vitdense.adapters.frames import over_frames
from vitdense.adapters.grids import STRIDES, check_plain, crop_to, lattice, resample
from vitdense.contracts import ADAPTERS, Adapter, AdapterConfig, Level
from vitdense.layers.norm import LayerNorm2d


@ADAPTERS.register("simple_pyramid")
class SimplePyramidConfig(AdapterConfig):
    """Strides 4, 8, 16 and 32 of `channels` each, from the last of a plain backbone's levels."""

    channels: PositiveInt = 256
    norm_eps: PositiveFloat = 1e-6

    def build(self, levels: tuple[Level, ...]) -> Adapter:
        """A pyramid for levels that all have one stride."""
        check_plain("simple_pyramid", levels)
        return over_frames(SimplePyramid(self, levels[-1]), levels[-1:])


class SimplePyramid(Adapter):
    """Up by transposed convolutions or down by pooling, then 1 x 1 and 3 x 3 convolutions, each layer-normed.

    Strides 8, 16 and 32 lead to the four by powers of two; any other, such as 14, is resampled to 16 first.
    """

    def __init__(self, config: SimplePyramidConfig, level: Level) -> None:
        super().__init__()
        self.levels = tuple(Level(config.channels, stride) for stride in STRIDES)
        self.patch = level.stride
        self.lattice = lattice(level.stride)
        self.stages = nn.ModuleList(
            _stage(level.channels, stride=self.lattice, target=target, config=config) for target in STRIDES
        )

    def forward(self, maps: list[Tensor], images: Tensor) -> list[Tensor]:
        """The backbone's maps and images (B, C, H, W) -> [(B, channels, ceil(H / s), ceil(W / s))] for s in STRIDES."""
        plain = resample(maps[-1], self.patch, self.lattice)
        return [crop_to(stage(plain), images, stride) for stage, stride in zip(self.stages, STRIDES, strict=True)]


def _stage(dim: int, *, stride: int, target: int, config: SimplePyramidConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    while stride > target:
        if layers:
            layers += [LayerNorm2d(dim, eps=config.norm_eps), nn.GELU()]
        layers.append(nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2))
        stride, dim = stride // 2, dim // 2
    while stride < target:
        # Odd maps keep their last row and column: ceil(H / 2 s) cells, not floor.
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True))
        stride *= 2
    return nn.Sequential(
        *layers,
        nn.Conv2d(dim, config.channels, kernel_size=1, bias=False),
        LayerNorm2d(config.channels, eps=config.norm_eps),
        nn.Conv2d(config.channels, config.channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(config.channels, eps=config.norm_eps),
    )

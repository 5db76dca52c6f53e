"""Plain maps interpolated to four strides, as mmsegmentation's MultiLevelNeck does."""

from pydantic import PositiveInt
from torch import Tensor, nn

from vitdense.adapters.frames import over_frames
from vitdense.adapters.grids import STRIDES, check_plain, crop_to, resample
from vitdense.contracts import ADAPTERS, Adapter, AdapterConfig, Level
from vitdense.errors import UserError


@ADAPTERS.register("multilevel")
class MultiLevelConfig(AdapterConfig):
    """Strides 4, 8, 16 and 32 of `channels` each (left out: the backbone's), from four plain maps or from one."""

    channels: PositiveInt | None = None

    def build(self, levels: tuple[Level, ...]) -> Adapter:
        """A pyramid for one level, or for four of one stride."""
        check_plain("multilevel", levels)
        if len(levels) not in (1, len(STRIDES)):
            raise UserError(
                f"multilevel takes 1 map or {len(STRIDES)}, and the backbone gives {len(levels)}: change its "
                "out_indices, or take `adapter: {name: simple_pyramid}`, which needs the last map only"
            )
        return over_frames(MultiLevel(self, levels), levels)


class MultiLevel(Adapter):
    """A 1 x 1 convolution for each map, bilinear resampling, a 3 x 3 convolution for each stride."""

    def __init__(self, config: MultiLevelConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        width = config.channels or levels[-1].channels
        self.levels = tuple(Level(width, stride) for stride in STRIDES)
        self.patch = levels[-1].stride
        self.repeats = len(STRIDES) // len(levels)
        self.lateral_convs = nn.ModuleList(nn.Conv2d(level.channels, width, kernel_size=1) for level in levels)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in STRIDES)
        self.apply(_init_weights)

    def forward(self, maps: list[Tensor], images: Tensor) -> list[Tensor]:
        """maps: one or four of (B, C, h, w), images: (B, C, H, W) -> [(B, channels, ceil(H / s), ceil(W / s))]."""
        laterals = [conv(each) for conv, each in zip(self.lateral_convs, maps, strict=True)] * self.repeats
        return [
            conv(crop_to(resample(lateral, self.patch, stride), images, stride))
            for conv, lateral, stride in zip(self.convs, laterals, STRIDES, strict=True)
        ]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)

"""What detectron2 asks of a backbone: maps by name, and `output_shape()`; detectron2 itself is not imported."""

from dataclasses import dataclass

from torch import Tensor, nn

from vitdense.contracts import Backbone
from vitdense.errors import UserError


@dataclass(frozen=True)
class ShapeSpec:
    """What detectron2's heads read of a map; its own class has the same fields."""

    channels: int
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Detectron2Backbone(nn.Module):
    """Maps named res2, res3, ..., as detectron2 names strides 4, 8, ...; give `names` for other strides or equal ones.

    detectron2 asks that a backbone be one of its class too: `class Ours(Detectron2Backbone, Backbone)` is.
    Pictures are best normalised by `pixel_mean` and `pixel_std`, which count in 0..255, in the order RGB.
    """

    size_divisibility = 0
    """Any size will do: detectron2's own FPN above this asks for what it needs."""

    def __init__(self, backbone: Backbone, names: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        strides = [level.stride for level in backbone.levels]
        self.names = names or tuple(f"res{stride.bit_length() - 1}" for stride in strides if stride.bit_count() == 1)
        if not len(self.names) == len(set(self.names)) == len(strides):
            raise UserError(
                f"the {len(strides)} maps of strides {strides} need as many names, and these are {list(self.names)}: "
                "give names, or an adapter such as simple_pyramid"
            )
        self.pixel_mean = [255.0 * value for value in backbone.mean]
        self.pixel_std = [255.0 * value for value in backbone.std]

    @property
    def padding_constraints(self) -> dict[str, int]:
        """None: neither a square nor a multiple."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return {
            name: ShapeSpec(channels=level.channels, stride=level.stride)
            for name, level in zip(self.names, self.backbone.levels, strict=True)
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: (B, C, H, W), normalised -> {name: (B, C_i, ceil(H / s_i), ceil(W / s_i))}, finest first."""
        return dict(zip(self.names, self.backbone(images), strict=True))

"""segmentation-models-pytorch on our backbones: importing this module adds `vitdense-<name>` to its encoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segmentation_models_pytorch.encoders import encoders
from torch import Tensor, nn

from vitdense.build import AdaptedBackbone, create_backbone, list_backbones
from vitdense.contracts import ADAPTERS, Backbone, Level
from vitdense.errors import UserError

PREFIX = "vitdense-"
PYRAMID = "simple_pyramid"
"""The adapter of plain backbones that were registered without one: smp's decoders need a map for each stride."""


def register(
    name: str,
    backbone: str,
    *,
    weights: str | Path | None = None,
    adapter: str | Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Adds `name` to smp's encoders: the backbone that `create_backbone` makes of the rest.

    smp's own arguments stay its own: `in_channels` and `encoder_depth` are given to the model, and `encoder_weights`
    is None, since the weights stand here.
    """
    if "in_channels" in options:
        raise UserError(f"{name}: in_channels is given to the smp model, not to register")
    params = {"backbone": backbone, "weights": weights, "adapter": adapter, "options": options}
    encoders[name] = {"encoder": SmpEncoder, "params": params, "pretrained_settings": {}}


class SmpEncoder(nn.Module):
    """What smp's decoders read: the images, then a map for each stride 2, 4, .. 2**depth, empty where there is none."""

    _is_torch_scriptable = False
    _is_torch_exportable = True
    _is_torch_compilable = True

    def __init__(
        self,
        backbone: str,
        *,
        weights: str | Path | None,
        adapter: str | Mapping[str, Any] | None,
        options: Mapping[str, Any],
        depth: int,
        output_stride: int,
    ) -> None:
        super().__init__()
        self._recipe = (backbone, weights, adapter, dict(options))
        self._depth = depth
        self._build(in_channels=3)

    def _build(self, in_channels: int) -> None:
        name, weights, adapter, options = self._recipe
        backbone = create_backbone(name, weights=weights, adapter=adapter, in_channels=in_channels, **options)
        if _is_plain(backbone.levels):
            backbone = AdaptedBackbone(backbone, ADAPTERS.create(PYRAMID))
        self.backbone: Backbone = backbone
        self.mean, self.std = list(backbone.mean), list(backbone.std)
        self.positions = _positions(backbone.levels, self._depth, name)
        channels = [0 if i is None else backbone.levels[i].channels for i in self.positions]
        self.out_channels = [in_channels, *channels]

    @property
    def output_stride(self) -> int:
        """The stride of the last map."""
        return int(2**self._depth)

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Called by smp after construction; weights are read again, and adapted to the channels as ours always are."""
        if in_channels != self.out_channels[0]:
            self._build(in_channels)

    def make_dilated(self, output_stride: int) -> None:
        """Called by smp where a decoder asks for a stride other than 32: a lesser depth gives it, dilation doesn't."""
        if output_stride != self.output_stride:
            depth = output_stride.bit_length() - 1
            raise UserError(
                f"vitdense encoders can't be dilated to output stride {output_stride}; encoder_depth={depth} has it"
            )

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> these, and (B, C_i, ceil(H / 2**i), ceil(W / 2**i)), i = 1 .. depth."""
        maps = self.backbone(images)
        return [images, *(self._empty(images, i) if at is None else maps[at] for i, at in enumerate(self.positions, 1))]

    def _empty(self, images: Tensor, halvings: int) -> Tensor:
        batch, _, height, width = images.shape
        stride = 2**halvings
        return images.new_empty(batch, 0, -(-height // stride), -(-width // stride))


def _is_plain(levels: tuple[Level, ...]) -> bool:
    return len(levels) > 1 and len({level.stride for level in levels}) == 1


def _positions(levels: tuple[Level, ...], depth: int, name: str) -> tuple[int | None, ...]:
    """For each stride 2 .. 2**depth the level that has it."""
    if not 1 <= depth <= 5:
        raise UserError(f"encoder_depth must lie in 1 .. 5, given {depth}")
    at = {level.stride: i for i, level in enumerate(levels)}
    found = tuple(at.get(2**i) for i in range(1, depth + 1))
    if found[-1] is None:
        raise UserError(
            f"{name} has strides {sorted(at)}, and encoder_depth={depth} ends at stride {2**depth}: "
            "choose a depth that ends at one of its strides, or an adapter"
        )
    return found


for _name in list_backbones():
    register(f"{PREFIX}{_name}", _name)

"""torchvision's detectors on our backbones: Faster R-CNN, Mask R-CNN, RetinaNet and FCOS, with anchors that fit."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper

from vitdense.contracts import Backbone, Level
from vitdense.errors import UserError

Top = Literal["pool", "p6p7", "none"]

_MAPS_ON_TOP: dict[Top, int] = {"pool": 1, "p6p7": 2, "none": 0}
_RATIOS = (0.5, 1.0, 2.0)
_THIRDS_OF_AN_OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


class DetectionBackbone(nn.Module):
    """What torchvision's detectors take as a backbone: maps by name, "0" the finest, all of `out_channels`.

    `fpn=False` hands levels of equal channels on as they are, such as those of simple_pyramid. `top` adds coarser
    maps: "pool" one, as Faster R-CNN has it, "p6p7" two, as RetinaNet does. Levels finer than `finest` are left out.
    """

    def __init__(
        self, backbone: Backbone, *, fpn: bool = True, channels: int = 256, top: Top = "pool", finest: int = 1
    ) -> None:
        super().__init__()
        levels = [level for level in backbone.levels if level.stride >= finest]
        _check(levels, backbone, fpn=fpn)
        self.body = backbone
        self.left_out = len(backbone.levels) - len(levels)
        self.out_channels = channels if fpn else levels[0].channels
        self.fpn = FeaturePyramidNetwork([level.channels for level in levels], channels) if fpn else nn.Identity()
        self.top = _top(top, self.out_channels)
        self.level_strides = tuple(level.stride for level in levels)
        coarsest = self.level_strides[-1]
        self.strides = (*self.level_strides, *(coarsest * 2**i for i in range(1, _MAPS_ON_TOP[top] + 1)))
        self.names = [str(i) for i in range(len(levels))]

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """images: (B, C, H, W), normalised -> (B, out_channels, ceil(H / s), ceil(W / s)) for each of `strides`."""
        maps = self.body(images)[self.left_out :]
        pyramid: OrderedDict[str, Tensor] = self.fpn(OrderedDict(zip(self.names, maps, strict=True)))
        if self.top is None:
            return pyramid
        every, names = self.top(list(pyramid.values()), maps, list(pyramid))
        return OrderedDict(zip(names, every, strict=True))


def faster_rcnn(
    backbone: Backbone, num_classes: int, *, fpn: bool = True, channels: int = 256, **options: Any
) -> FasterRCNN:
    """torchvision's FasterRCNN; `num_classes` counts the background, and `options` are torchvision's own."""
    body = DetectionBackbone(backbone, fpn=fpn, channels=channels)
    return FasterRCNN(body, num_classes, **{**_two_stages(body), **options})


def mask_rcnn(
    backbone: Backbone, num_classes: int, *, fpn: bool = True, channels: int = 256, **options: Any
) -> MaskRCNN:
    """torchvision's MaskRCNN; `num_classes` counts the background, and `options` are torchvision's own."""
    body = DetectionBackbone(backbone, fpn=fpn, channels=channels)
    settled = {**_two_stages(body), "mask_roi_pool": _roi_align(body, output_size=14)}
    return MaskRCNN(body, num_classes, **{**settled, **options})


def retinanet(
    backbone: Backbone, num_classes: int, *, fpn: bool = True, channels: int = 256, **options: Any
) -> RetinaNet:
    """torchvision's RetinaNet on strides 8 and coarser, as published; `options` are torchvision's own."""
    body = DetectionBackbone(backbone, fpn=fpn, channels=channels, top="p6p7", finest=8)
    sizes = [tuple(int(4 * stride * part) for part in _THIRDS_OF_AN_OCTAVE) for stride in body.strides]
    return RetinaNet(body, num_classes, **{**_pictures(body), "anchor_generator": _anchors(sizes, _RATIOS), **options})


def fcos(backbone: Backbone, num_classes: int, *, fpn: bool = True, channels: int = 256, **options: Any) -> FCOS:
    """torchvision's FCOS on strides 8 and coarser, as published; `options` are torchvision's own."""
    body = DetectionBackbone(backbone, fpn=fpn, channels=channels, top="p6p7", finest=8)
    sizes = [(stride,) for stride in body.strides]
    return FCOS(body, num_classes, **{**_pictures(body), "anchor_generator": _anchors(sizes, (1.0,)), **options})


def _check(levels: Sequence[Level], backbone: Backbone, *, fpn: bool) -> None:
    """A pyramid that torchvision's level assignment understands."""
    strides = [level.stride for level in backbone.levels]
    if not levels or any(level.time_stride is not None for level in levels):
        raise UserError(f"torchvision's detectors need maps of pictures, and this backbone gives strides {strides}")
    if len(levels) > 1 and len(set(strides)) == 1:
        raise UserError(
            f"a plain backbone has no pyramid (strides {strides}): give it one with adapter='simple_pyramid'"
        )
    if levels[0].stride.bit_count() != 1 or any(b.stride != 2 * a.stride for a, b in pairwise(levels)):
        raise UserError(f"torchvision's detectors need strides that double, such as 4, 8, 16, 32; these are {strides}")
    if not fpn and len({level.channels for level in levels}) > 1:
        given = [level.channels for level in levels]
        raise UserError(f"fpn=False needs levels of equal channels, and these have {given}: leave it out")


def _top(top: Top, channels: int) -> nn.Module | None:
    if top == "none":
        return None
    pool_or_convolutions: nn.Module = LastLevelMaxPool() if top == "pool" else LastLevelP6P7(channels, channels)
    return pool_or_convolutions


def _pictures(body: DetectionBackbone) -> dict[str, Any]:
    """How torchvision prepares pictures: our statistics, and padding to whole cells of the coarsest map.

    torchvision takes floor(size / cells) for the stride of a map; with its own 32 a map of stride 64 that has 13
    cells for 800 pixels passes for one of stride 61, and its last anchors lie 36 pixels off.
    """
    mean, std = body.body.mean, body.body.std
    return {"image_mean": list(mean), "image_std": list(std), "size_divisible": body.strides[-1]}


def _two_stages(body: DetectionBackbone) -> dict[str, Any]:
    anchors = _anchors([(8 * stride,) for stride in body.strides], _RATIOS)
    return {**_pictures(body), "rpn_anchor_generator": anchors, "box_roi_pool": _roi_align(body, output_size=7)}


def _anchors(sizes: Sequence[tuple[int, ...]], ratios: tuple[float, ...]) -> AnchorGenerator:
    return AnchorGenerator(tuple(sizes), (ratios,) * len(sizes))


def _roi_align(body: DetectionBackbone, *, output_size: int) -> MultiScaleRoIAlign:
    """With scales set: left alone, torchvision guesses them from the first batch and keeps the guess for all others."""
    pool = MultiScaleRoIAlign(featmap_names=body.names, output_size=output_size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in body.level_strides]
    finest, coarsest = body.level_strides[0], body.level_strides[-1]
    pool.map_levels = initLevelMapper(finest.bit_length() - 1, coarsest.bit_length() - 1)
    return pool

"""Backbones in torchvision's detectors: losses, anchors, odd sizes and what can't be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from vitdense.contracts import Backbone, Level
from vitdense.errors import UserError
from vitdense.interop.torchvision import DetectionBackbone, faster_rcnn, fcos, mask_rcnn, retinanet

DETECTORS: list[Callable[..., nn.Module]] = [faster_rcnn, mask_rcnn, retinanet, fcos]
SIZES = ((97, 130), (120, 64))
SMALL: dict[str, Any] = {"min_size": 120, "max_size": 200}
FEW: dict[str, Any] = {**SMALL, "box_batch_size_per_image": 32}


def pictures() -> list[Tensor]:
    return [torch.rand(3, *size) for size in SIZES]


def truth() -> list[dict[str, Tensor]]:
    return [
        {
            "boxes": torch.tensor([[8.0, 12, width - 6, height - 9]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, height, width, dtype=torch.uint8),
        }
        for height, width in SIZES
    ]


@pytest.mark.parametrize("detector", DETECTORS)
def test_losses_are_finite_and_reach_every_parameter_of_the_backbone(
    detector: Callable[..., nn.Module], make: Any
) -> None:
    two_stages = detector in (faster_rcnn, mask_rcnn)
    backbone = make("swin", **({} if two_stages else {"out_indices": (1, 2, 3)}))
    model = detector(backbone, 3, channels=32, **(FEW if two_stages else SMALL))
    losses = model(pictures(), truth())
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert max(float(parameter.grad.abs().max()) for parameter in backbone.parameters()) > 0


@torch.no_grad()
@pytest.mark.parametrize("detector", DETECTORS)
def test_detections_lie_inside_pictures_of_odd_sizes(detector: Callable[..., nn.Module], make: Any) -> None:
    few = {"score_thresh": 0.0, "detections_per_img": 8}
    options = {f"box_{name}": value for name, value in few.items()} if detector in (faster_rcnn, mask_rcnn) else few
    model = detector(make("plain"), 3, fpn=False, **SMALL, **options).eval()
    for (height, width), found in zip(SIZES, model(pictures()), strict=True):
        assert len(found["boxes"]) > 0
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()
        if detector is mask_rcnn:
            assert found["masks"].shape == (len(found["boxes"]), 1, height, width)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["swin", "plain", "timm"])
@pytest.mark.parametrize("top", ["pool", "p6p7", "none"])
def test_maps_are_those_of_the_strides(kind: str, top: Any, make: Any, odd_images: Tensor) -> None:
    body = DetectionBackbone(make(kind), channels=24, top=top)
    maps = body(odd_images)
    assert len(body.strides) == {"pool": 5, "p6p7": 6, "none": 4}[top]
    assert [tuple(each.shape) for each in maps.values()] == [
        (1, 24, -(-97 // stride), -(-130 // stride)) for stride in body.strides
    ]
    assert list(maps)[:4] == ["0", "1", "2", "3"]


@torch.no_grad()
def test_levels_without_an_fpn_are_the_backbones_own(make: Any, odd_images: Tensor) -> None:
    backbone = make("plain").eval()
    maps = list(DetectionBackbone(backbone, fpn=False)(odd_images).values())
    assert all(torch.equal(a, b) for a, b in zip(maps, backbone(odd_images), strict=False))
    assert torch.equal(maps[4], maps[3][..., ::2, ::2])


@pytest.mark.parametrize("detector", DETECTORS)
def test_the_last_anchor_stands_where_the_stride_puts_it(detector: Callable[..., nn.Module], make: Any) -> None:
    model: Any = detector(make("swin"), 3, channels=32, min_size=200, max_size=300)
    prepared, _ = model.transform([torch.rand(3, 250, 333)])
    anchors = anchor_centres(model, prepared)
    height, width = prepared.tensors.shape[-2:]
    ends = [(height - stride, width - stride) for stride in model.backbone.strides]
    assert anchors == ends
    # Padded as torchvision pads by default, the coarse maps have other strides than their own.
    model.transform.size_divisible = 32
    prepared, _ = model.transform([torch.rand(3, 250, 333)])
    height, width = prepared.tensors.shape[-2:]
    cells = [(-(-height // stride), -(-width // stride)) for stride in model.backbone.strides]
    true = [((h - 1) * s, (w - 1) * s) for (h, w), s in zip(cells, model.backbone.strides, strict=True)]
    assert anchor_centres(model, prepared) != true


def anchor_centres(model: Any, prepared: ImageList) -> list[tuple[float, float]]:
    """The centre (y, x) of the last anchor of each map."""
    generator = model.rpn.anchor_generator if hasattr(model, "rpn") else model.anchor_generator
    with torch.no_grad():
        maps = list(model.backbone(prepared.tensors).values())
    (boxes,) = generator(prepared, maps)
    counts = [
        n * each.shape[2] * each.shape[3] for n, each in zip(generator.num_anchors_per_location(), maps, strict=True)
    ]
    last = [group[-1] for group in boxes.split(counts)]
    return [(float(box[1] + box[3]) / 2, float(box[0] + box[2]) / 2) for box in last]


def test_anchor_sizes_are_the_published_ones_at_the_published_strides(make: Any) -> None:
    two: Any = faster_rcnn(make("swin"), 3, channels=32)
    one: Any = retinanet(make("swin"), 3, channels=32)
    assert two.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert one.anchor_generator.sizes == tuple(
        (x, int(x * 2 ** (1.0 / 3)), int(x * 2 ** (2.0 / 3))) for x in (32, 64, 128, 256, 512)
    )
    assert fcos(make("swin"), 3, channels=32).anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))


@torch.no_grad()
def test_a_first_picture_that_is_tiny_changes_nothing_for_the_next(make: Any) -> None:
    model: Any = mask_rcnn(make("swin"), 3, channels=32, min_size=40, max_size=400, box_detections_per_img=4).eval()
    model([torch.rand(3, 40, 41)])
    assert model.roi_heads.box_roi_pool.scales == model.roi_heads.mask_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert (model.roi_heads.box_roi_pool.map_levels.k_min, model.roi_heads.box_roi_pool.map_levels.k_max) == (2, 5)


@pytest.mark.parametrize("detector", DETECTORS)
def test_pictures_are_normalised_as_the_weights_want_unless_told_otherwise(
    detector: Callable[..., nn.Module], make: Any
) -> None:
    backbone = make("swin", in_channels=4, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7, 0.8))
    model: Any = detector(backbone, 3, channels=32)
    assert (model.transform.image_mean, model.transform.image_std) == ([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8])
    told: Any = detector(backbone, 3, channels=32, image_std=[1.0] * 4, min_size=99)
    assert (told.transform.image_std, told.transform.min_size) == ([1.0] * 4, (99,))


@pytest.mark.parametrize(
    ("levels", "fpn", "message"),
    [
        (((64, 8), (64, 8)), True, r"plain backbone has no pyramid \(strides \[8, 8\]\).*adapter='simple_pyramid'"),
        (((32, 4), (64, 8)), False, r"fpn=False needs levels of equal channels, and these have \[32, 64\]"),
        (((32, 4), (64, 16)), True, r"strides that double.*these are \[4, 16\]"),
        (((32, 3), (64, 6)), True, r"strides that double.*these are \[3, 6\]"),
    ],
)
def test_levels_that_do_not_fit_are_refused(
    levels: tuple[tuple[int, int], ...], fpn: bool, message: str, make: Any
) -> None:
    backbone: Backbone = make("swin")
    backbone.levels = tuple(Level(*level) for level in levels)
    with pytest.raises(UserError, match=message):
        DetectionBackbone(backbone, fpn=fpn)


def test_clips_are_refused(make: Any) -> None:
    backbone: Backbone = make("swin")
    backbone.levels = (Level(32, 4, time_stride=2),)
    with pytest.raises(UserError, match="need maps of pictures"):
        DetectionBackbone(backbone)

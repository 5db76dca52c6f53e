"""Backbones in detectron2's detectors, by a stand-in of its FPN."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.interop.detectron2 import Detectron2Backbone, ShapeSpec


def as_theirs(detectron2: Any, backbone: Backbone, **options: Any) -> Any:
    """One of detectron2's class, as the page shows."""
    kind: Any = type("VitdenseBackbone", (Detectron2Backbone, detectron2.Backbone), {})
    return kind(backbone, **options)


def prepared(images: list[Tensor], network: Any, body: Any) -> Tensor:
    """detectron2's preprocess_image: normalise, then pad to the largest and to size_divisibility."""
    assert "square_size" not in network.padding_constraints
    mean, std = (torch.tensor(values)[:, None, None] for values in (body.pixel_mean, body.pixel_std))
    images = [(image - mean) / std for image in images]
    unit = max(network.size_divisibility, 1)
    height, width = (-(-max(image.shape[axis] for image in images) // unit) * unit for axis in (1, 2))
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])


@pytest.mark.parametrize(("kind", "names"), [("swin", None), ("plain", ("p2", "p3", "p4", "p5"))])
def test_the_stubs_fpn_runs_and_trains_the_backbone(kind: str, names: Any, make: Any, detectron2: Any) -> None:
    body = as_theirs(detectron2, make(kind), names=names)
    network = detectron2.FPN(body, list(body.output_shape()), 16)
    pictures = [torch.randint(0, 256, (3, 97, 130)).float(), torch.randint(0, 256, (3, 120, 64)).float()]
    images = prepared(pictures, network, body)
    assert images.shape == (2, 3, 128, 160)
    maps = network(images)
    assert [tuple(each.shape) for each in maps] == [(2, 16, 128 // s, 160 // s) for s in (4, 8, 16, 32)]
    torch.autograd.backward(torch.stack([each.square().mean() for each in maps]).sum())
    assert all(parameter.grad is not None for parameter in body.parameters())


@torch.no_grad()
def test_output_shape_tells_the_truth_at_any_size(make: Any, detectron2: Any, odd_images: Tensor) -> None:
    body = as_theirs(detectron2, make("swin").eval())
    maps, shapes = body(odd_images), body.output_shape()
    assert list(maps) == list(shapes) == ["res2", "res3", "res4", "res5"]
    assert shapes["res4"] == ShapeSpec(channels=128, stride=16)
    for name, each in maps.items():
        assert each.shape[1] == shapes[name].channels
        assert each.shape[2:] == (-(-97 // shapes[name].stride), -(-130 // shapes[name].stride))
    assert body.size_divisibility == 0


def test_pixel_statistics_count_to_255(make: Any) -> None:
    body = Detectron2Backbone(make("swin", mean=(0.5, 0.25, 0.125), std=(1.0, 0.5, 0.25)))
    assert body.pixel_mean == [127.5, 63.75, 31.875]
    assert body.pixel_std == [255.0, 127.5, 63.75]


@pytest.mark.parametrize("names", [None, ("p2", "p3"), ("p2", "p2", "p4", "p5")])
def test_names_that_do_not_tell_the_maps_apart_are_refused(names: Any, make: Any) -> None:
    backbone = make("plain").backbone if names is None else make("swin")
    with pytest.raises(UserError, match="need as many names, and these are"):
        Detectron2Backbone(backbone, names)

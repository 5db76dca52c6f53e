"""The linear head: norm and 1x1 convolution over all levels at the finest size."""

import pytest
import torch

from heads import create_head
from vitdense.contracts import Batch, Level
from vitdense.errors import UserError

LEVELS = (Level(8, 8), Level(12, 16))


def test_logits_come_at_the_finest_level() -> None:
    head = create_head("linear", LEVELS, num_classes=5)
    outputs = head([torch.randn(2, 8, 7, 9), torch.randn(2, 12, 4, 5)], {})
    assert outputs["logits"].shape == (2, 5, 7, 9)


def test_maps_of_one_stride_are_joined_as_by_hand() -> None:
    head = create_head("linear", (Level(8, 16), Level(12, 16)), num_classes=5, norm="none").eval()
    features = [torch.randn(1, 8, 4, 5), torch.randn(1, 12, 4, 5)]
    weight, bias = head.get_parameter("classifier.weight")[:, :, 0, 0], head.get_parameter("classifier.bias")
    expected = torch.einsum("kc,bchw->bkhw", weight, torch.cat(features, dim=1)) + bias.view(-1, 1, 1)
    torch.testing.assert_close(head(features, {})["logits"], expected)


def test_use_levels_picks_maps() -> None:
    head = create_head("linear", LEVELS, num_classes=5, use_levels=(-1,))
    outputs = head([torch.randn(2, 8, 7, 9), torch.randn(2, 12, 4, 5)], {})
    assert outputs["logits"].shape == (2, 5, 4, 5)


def test_batch_norm_makes_scale_of_features_irrelevant() -> None:
    head = create_head("linear", (Level(8, 8),), num_classes=5)
    features = torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(
        head([features], {})["logits"], head([features * 100], {})["logits"], rtol=1e-3, atol=1e-4
    )


def test_a_level_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"use_levels picks maps \[2\], but the backbone gives 2"):
        create_head("linear", LEVELS, num_classes=5, use_levels=(2,))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_depth_equals_dinov2s_formula(dtype: torch.dtype, bound: float) -> None:
    """Enlarged first, as DINOv2 does, then normed and classified, cell by cell."""
    torch.manual_seed(0)
    head = create_head("linear_depth", LEVELS, bins=9, min_depth=0.5, max_depth=8.0).to(dtype).eval()
    head.get_buffer("norm.running_mean").normal_()
    head.get_buffer("norm.running_var").uniform_(0.5, 1.5)
    features = [torch.randn(2, 8, 5, 7, dtype=dtype), torch.randn(2, 12, 3, 4, dtype=dtype)]
    with torch.no_grad():
        given = head(features, {})["depth"]
        low = torch.nn.functional.interpolate(features[1], size=(5, 7), mode="bilinear")
        large = torch.nn.functional.interpolate(torch.cat([features[0], low], dim=1), scale_factor=4, mode="bilinear")
        mean, variance = head.get_buffer("norm.running_mean"), head.get_buffer("norm.running_var")
        normed = (large - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()
        weight, bias = head.get_parameter("classifier.weight")[:, :, 0, 0], head.get_parameter("classifier.bias")
        scores = (torch.einsum("kc,bchw->bkhw", weight, normed) + bias.view(-1, 1, 1)).clamp_min(0) + 0.1
        bins = torch.tensor([0.5 + 7.5 * i / 8 for i in range(9)], dtype=dtype)
        expected = (scores / scores.sum(1, keepdim=True) * bins.view(-1, 1, 1)).sum(1, keepdim=True)
    assert given.shape == (2, 1, 20, 28)
    assert given.std() > 0.1
    torch.testing.assert_close(given, expected, rtol=0, atol=bound)


def test_depth_trains_every_parameter_in_half_precision_too() -> None:
    head = create_head("linear_depth", LEVELS, bins=16)
    batch: Batch = {"depth": torch.rand(2, 25, 33) * 9 + 0.5}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = head([torch.randn(2, 8, 7, 9), torch.randn(2, 12, 4, 5)], batch)
    losses = head.losses(outputs, batch)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []

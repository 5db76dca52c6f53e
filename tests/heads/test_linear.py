"""The linear head: norm and 1x1 convolution over all levels at the finest size."""

import pytest
import torch

from heads import create_head
from vitdense.contracts import Level
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

"""Principal components beside scikit-like arithmetic written out, and what is degenerate."""

import numpy as np
import pytest
import torch

import vitdense
from vitdense.explaining import principal_components


@pytest.mark.parametrize("name", ["vit_nano_patch8", "swin_nano"])
def test_components_are_those_of_the_covariance(name: str) -> None:
    torch.manual_seed(0)
    backbone = vitdense.create_backbone(name).eval()
    images = torch.randn(2, 3, 72, 104)
    with torch.no_grad():
        patches, _, grid = backbone.tokens(images)
    found = principal_components(backbone, images)
    assert found.shape == (2, 3, *grid)
    for picture, own in zip(patches.double().numpy(), found.double().numpy(), strict=True):
        values, vectors = np.linalg.eigh(np.cov(picture.T))
        expected = (picture - picture.mean(0)) @ vectors[:, ::-1][:, : min(3, len(values))]
        for number, (one, other) in enumerate(zip(expected.T, own.reshape(3, -1), strict=True)):
            low, high = np.quantile(one, (0.02, 0.98))
            rising = np.clip((one - low) / (high - low), 0, 1)
            falling = np.clip((-one + high) / (high - low), 0, 1)
            nearest = min(np.abs(rising - other).max(), np.abs(falling - other).max())
            assert nearest < 1e-5, number


def test_a_picture_of_one_cell_has_no_components() -> None:
    found = principal_components(vitdense.create_backbone("vit_nano_patch8").eval(), torch.randn(1, 3, 8, 8))
    assert torch.equal(found, torch.zeros(1, 3, 1, 1))

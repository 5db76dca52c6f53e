"""Sine positions against transformers' of both families, on padded canvases; which cells show a picture."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrSinePositionEmbedding
from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

from heads.detection.positions import sine_positions, valid_cells
from vitdense.contracts import Batch


def padded(size: tuple[int, int], *extents: tuple[int, int]) -> Batch:
    return {"images": torch.zeros(len(extents), 3, *size), "extents": torch.tensor(extents)}


@pytest.mark.parametrize("centred", [False, True])
def test_sines_equal_transformers(centred: bool) -> None:
    batch = padded((90, 117), (90, 117), (64, 80), (90, 33))
    valid = valid_cells(batch, (6, 8))
    assert valid is not None
    make: Any = DeformableDetrSinePositionEmbedding if centred else DetrSinePositionEmbedding
    reference = make(16, normalize=True)
    expected = reference(shape=torch.Size([3, 1, 6, 8]), device=valid.device, dtype=torch.float32, mask=valid)
    ours = sine_positions(valid, 32, centred=centred)
    if expected.ndim == 3:  # (B, h * w, C)
        expected = expected.transpose(1, 2).unflatten(2, (6, 8))
    assert torch.allclose(ours, expected, atol=1e-5)


def test_cells_are_valid_where_the_resized_mask_is() -> None:
    batch = padded((75, 98), (75, 98), (40, 61), (1, 1))
    mask = torch.zeros(3, 75, 98)
    for picture, (height, width) in enumerate(batch["extents"].tolist()):
        mask[picture, :height, :width] = 1
    for size in ((10, 13), (3, 4), (75, 98)):
        expected = F.interpolate(mask[None], size=size)[0].bool()
        found = valid_cells(batch, size)
        assert found is not None
        assert torch.equal(found, expected)


def test_pictures_that_fill_their_canvas_need_no_mask() -> None:
    assert valid_cells({"images": torch.zeros(1, 3, 8, 8)}, (2, 2)) is None

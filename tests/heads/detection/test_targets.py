"""Targets of a batch in one row, in shares of a picture or of a canvas, and targets that can't be learnt from."""

import pytest
import torch

import heads
from heads.detection.targets import read_targets
from vitdense.contracts import Batch, Level
from vitdense.errors import UserError

FRAMES = torch.tensor([[100.0, 50, 100, 50], [80, 40, 80, 40]])


def batch() -> Batch:
    boxes = torch.tensor([[10.0, 5, 30, 25], [0, 0, 100, 50]], dtype=torch.float64)
    return {
        "images": torch.zeros(2, 3, 60, 100),
        "targets": [
            {"boxes": boxes, "labels": torch.tensor([2, 0])},
            {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        ],
    }


def test_boxes_become_shares_of_their_frame() -> None:
    found = read_targets(batch(), FRAMES, 3)
    assert found.boxes.dtype == torch.float32
    assert found.boxes.tolist() == [pytest.approx([0.2, 0.3, 0.2, 0.4]), pytest.approx([0.5, 0.5, 1, 1])]
    assert (found.labels.tolist(), found.pictures.tolist()) == ([2, 0], [0, 0])
    assert (found.counts, found.starts) == ((2, 0), (0, 2, 2))


def test_a_batch_without_targets_or_with_strange_labels_is_refused() -> None:
    with pytest.raises(UserError, match="learns from boxes, but the batch has only images"):
        read_targets({"images": torch.zeros(1, 3, 8, 8)}, FRAMES, 3)
    with pytest.raises(UserError, match="labels reach from 0 to 2, for 2 classes"):
        read_targets(batch(), FRAMES, 2)


@pytest.mark.parametrize(("name", "frame"), [("detr", [80.0, 40.0]), ("rtdetr", [100.0, 60.0])])
def test_padding_counts_for_heads_that_look_at_the_canvas(name: str, frame: list[float]) -> None:
    head = heads.create_head(name, (Level(8, 8), Level(8, 16), Level(8, 32)), num_classes=3)
    padded = batch()
    padded["extents"] = torch.tensor([[60, 100], [40, 80]])
    outputs = {"logits": torch.full((2, 1, 4), -9.0), "boxes_cxcywh": torch.tensor([[[0.5, 0.5, 1.0, 1.0]]] * 2)}
    outputs["logits"][..., 1] = 5.0
    padded["sizes"] = [(60, 100), (400, 800)]
    found = head.predict(outputs, padded)[1]
    assert found.labels[0] == 1
    width, height = frame
    expected = [0, 0, min(width / 80, 1) * 800, min(height / 40, 1) * 400]
    assert found.boxes[0].tolist() == pytest.approx(expected)

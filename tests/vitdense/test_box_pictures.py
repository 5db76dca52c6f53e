"""Pictures of things: boxes, names and masks lie where they should, and panels hold truth and result."""

import numpy as np
import torch

from vitdense.contracts import Detections, Target
from vitdense.pictures import draw_things, things_panel

CLASSES, PALETTE = ("circle", "square"), ((255, 0, 0), (0, 0, 255))


def found(*scores: float) -> Detections:
    boxes = torch.tensor([[10.0, 20, 40, 60], [50, 5, 90, 30]])[: len(scores)]
    return Detections(boxes, torch.tensor(scores), torch.arange(len(scores)))


def test_boxes_are_outlined_in_the_colour_of_their_class() -> None:
    drawn = np.asarray(draw_things(np.full((80, 100, 3), 128, np.uint8), found(0.9, 0.8), CLASSES, PALETTE))
    assert drawn[59, 25].tolist() == [255, 0, 0]
    assert drawn[40, 39].tolist() == [255, 0, 0]
    assert drawn[20, 89].tolist() == [0, 0, 255]
    assert (drawn[40, 25] == 128).all(), "the inside stays"
    assert (drawn[70:, 60:] == 128).all()


def test_masks_tint_their_pixels_and_the_best_lies_on_top() -> None:
    things = found(0.9, 0.8)
    masks = torch.zeros(2, 80, 100, dtype=torch.bool)
    masks[0, 30:50, 15:35], masks[1, 45:70, 30:60] = True, True
    things = Detections(things.boxes, things.scores, things.labels, masks)
    drawn = np.asarray(draw_things(np.full((80, 100, 3), 100, np.uint8), things, CLASSES, PALETTE)).astype(int)
    assert drawn[40, 25, 0] > 150 > drawn[40, 25, 2]
    assert drawn[65, 55, 2] > 150 > drawn[65, 55, 0]
    assert drawn[47, 32, 0] > drawn[47, 32, 2], "the first thing is on top"


def test_panels_show_truth_and_only_what_is_likely() -> None:
    image = np.full((80, 100, 3), 128, np.uint8)
    truth = Target(boxes=found(1.0).boxes.double(), labels=torch.tensor([0]))
    both = things_panel(image, truth, found(0.9, 0.1), CLASSES, PALETTE)
    alone = things_panel(image, None, found(0.9, 0.1), CLASSES, PALETTE)
    assert both.width > 1.9 * alone.width - 60
    assert not (np.asarray(alone) == (0, 0, 255)).all(-1).any(), "the unlikely one is left out"
    assert (np.asarray(alone) == (255, 0, 0)).all(-1).any()


def test_no_things_leave_the_picture_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    assert (np.asarray(draw_things(image, found(), CLASSES, PALETTE)) == image).all()

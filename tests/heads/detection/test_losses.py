"""Losses of all layers at once against every term of transformers' loss classes, and where nothing is to learn."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss
from transformers.loss.loss_rt_detr import RTDetrLoss

from heads.detection.boxes import overlaps, to_centres, to_corners
from heads.detection.losses import box_losses, count_targets, cross_entropy, focal, varifocal
from heads.detection.matching import MatchCosts, match
from heads.detection.targets import Targets, picture_of_each

LAYERS, QUERIES, CLASSES = 2, 12, 6
PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
COUNTS = [(3, 0, 5), (0, 0), (20, 1)]


class Scene:
    """Queries of two layers, and targets in both ways of writing them."""

    def __init__(self, counts: tuple[int, ...], dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(3)
        shape = (LAYERS, len(counts), QUERIES)
        self.logits = (2 * torch.randn(*shape, CLASSES, generator=generator, dtype=dtype)).requires_grad_()
        self.boxes = (torch.rand(*shape, 4, generator=generator, dtype=dtype) * 0.4 + 0.1).requires_grad_()
        self.theirs = [
            {
                "class_labels": torch.randint(CLASSES - 1, (count,), generator=generator),
                "boxes": torch.rand(count, 4, generator=generator, dtype=dtype) * 0.4 + 0.1,
            }
            for count in counts
        ]
        labels = torch.cat([each["class_labels"] for each in self.theirs])
        boxes = torch.cat([each["boxes"] for each in self.theirs])
        self.targets = Targets(labels, boxes, picture_of_each(counts, labels.device), counts)
        self.number = count_targets(self.targets)

    def outputs(self, layer: int) -> dict[str, Tensor]:
        return {"logits": self.logits[layer], "pred_boxes": self.boxes[layer]}


def check(ours: Tensor, theirs: list[Tensor], at: Tensor, bound: float) -> None:
    """The numbers, and the gradients at the queries of their sum."""
    expected = torch.stack([each.reshape(()) for each in theirs])
    assert torch.allclose(ours, expected, rtol=bound, atol=bound)
    (mine,) = torch.autograd.grad(ours.sum(), at, retain_graph=True, allow_unused=True)
    (given,) = torch.autograd.grad(expected.sum(), at, retain_graph=True, allow_unused=True)
    assert (mine is None) == (given is None)
    if mine is not None and given is not None:
        assert torch.allclose(mine, given, rtol=bound, atol=bound)


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
@pytest.mark.parametrize("counts", COUNTS)
def test_cross_entropy_and_boxes_equal_detrs(counts: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    scene = Scene(counts, dtype)
    make_matcher: Any = HungarianMatcher
    make: Any = ImageLoss
    theirs = make(make_matcher(1, 5, 2), CLASSES - 1, 0.1, ["labels", "boxes"]).to(dtype)
    terms = [theirs(scene.outputs(layer), scene.theirs) for layer in range(LAYERS)]
    found = match(scene.logits, scene.boxes, scene.targets, MatchCosts(), scores="softmax")
    labels = cross_entropy(scene.logits, found, scene.targets, nothing=0.1)
    box, giou = box_losses(scene.boxes, found, scene.targets, scene.number)
    check(labels, [term["loss_ce"] for term in terms], scene.logits, bound)
    check(box, [term["loss_bbox"] for term in terms], scene.boxes, bound)
    check(giou, [term["loss_giou"] for term in terms], scene.boxes, bound)


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_focal_equals_deformable_detrs(counts: tuple[int, ...], alpha: float, dtype: torch.dtype, bound: float) -> None:
    scene = Scene(counts, dtype)
    make_matcher: Any = DeformableDetrHungarianMatcher
    make: Any = DeformableDetrImageLoss
    theirs = make(make_matcher(1, 5, 2), CLASSES, alpha, ["labels"])
    terms = [theirs(scene.outputs(layer), scene.theirs) for layer in range(LAYERS)]
    found = match(scene.logits, scene.boxes, scene.targets, MatchCosts(), scores="sigmoid")
    ours = focal(scene.logits, found, scene.targets, scene.number, alpha=alpha)
    check(ours, [term["loss_ce"] for term in terms], scene.logits, bound)


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
@pytest.mark.parametrize("counts", COUNTS)
def test_varifocal_equals_rt_detrs(counts: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    scene = Scene(counts, dtype)
    options: dict[str, Any] = {"matcher_class_cost": 2.0, "matcher_bbox_cost": 5.0, "matcher_giou_cost": 2.0}
    options |= {"use_focal_loss": True, "matcher_alpha": 0.25, "matcher_gamma": 2.0, "num_labels": CLASSES}
    options |= {"weight_loss_vfl": 1.0, "weight_loss_bbox": 5.0, "weight_loss_giou": 2.0, "eos_coefficient": 0.1}
    make: Any = RTDetrLoss
    theirs = make(SimpleNamespace(**options, focal_loss_alpha=0.75, focal_loss_gamma=2.0))
    found = match(scene.logits, scene.boxes, scene.targets, MatchCosts(label=2.0), scores="sigmoid")
    ours = varifocal(scene.logits, scene.boxes, found, scene.targets, scene.number)
    terms = []
    for layer in range(LAYERS):
        pairs = theirs.matcher(scene.outputs(layer), scene.theirs)
        terms.append(theirs.loss_labels_vfl(scene.outputs(layer), scene.theirs, pairs, scene.number)["loss_vfl"])
    check(ours, terms, scene.logits, bound)


def test_nothing_to_find_still_teaches_scores_and_leaves_boxes_alone() -> None:
    scene = Scene((0, 0), torch.float32)
    found = match(scene.logits, scene.boxes, scene.targets, MatchCosts(), scores="sigmoid")
    box, giou = box_losses(scene.boxes, found, scene.targets, scene.number)
    assert float(scene.number) == 1
    assert box.tolist() == giou.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad((box + giou).sum(), scene.boxes)
    assert not gradient.any()
    assert (focal(scene.logits, found, scene.targets, scene.number) > 0).all()


def test_a_negative_alpha_weighs_alike() -> None:
    scene = Scene((3, 2), torch.float64)
    found = match(scene.logits, scene.boxes, scene.targets, MatchCosts(), scores="sigmoid")
    alike = focal(scene.logits, found, scene.targets, scene.number, alpha=-1)
    halves = focal(scene.logits, found, scene.targets, scene.number, alpha=0.5)
    assert torch.allclose(alike, 2 * halves)


def test_overlaps_are_those_of_rectangles() -> None:
    one = torch.tensor([[0.0, 0, 4, 2], [0, 0, 1, 1], [2, 2, 2, 2]])
    other = torch.tensor([[2.0, 0, 6, 2], [3, 0, 4, 1], [2, 2, 2, 2]])
    iou, generalised = overlaps(one, other)
    assert iou.tolist() == pytest.approx([4 / 12, 0, 0])
    assert generalised.tolist() == pytest.approx([4 / 12, -0.5, 0])
    assert torch.equal(to_corners(to_centres(one)), one)

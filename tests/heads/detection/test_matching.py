"""Matching of all layers at once against transformers' matchers, layer by layer, and what is refused."""

from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from heads.detection import matching
from heads.detection.matching import MatchCosts, Matches, match, pair_costs
from heads.detection.targets import Targets, picture_of_each
from vitdense.errors import TrainingError

COUNTS = (3, 0, 5, 25, 1)  # none, and more than there are queries
LAYERS, QUERIES, CLASSES = 3, 20, 7
Pair = tuple[int, int, int]


def queries(dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (LAYERS, len(COUNTS), QUERIES)
    logits = 2 * torch.randn(*shape, CLASSES, generator=generator, dtype=dtype)
    return logits, torch.rand(*shape, 4, generator=generator, dtype=dtype) * 0.4 + 0.1


def targets(dtype: torch.dtype, counts: tuple[int, ...] = COUNTS) -> tuple[Targets, list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    theirs = [
        {
            "class_labels": torch.randint(CLASSES - 1, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator, dtype=dtype) * 0.4 + 0.1,
        }
        for count in counts
    ]
    labels = torch.cat([each["class_labels"] for each in theirs])
    boxes = torch.cat([each["boxes"] for each in theirs])
    return Targets(labels, boxes, picture_of_each(counts, labels.device), counts), theirs


def pairs_of(matches: Matches, layer: int) -> set[Pair]:
    rows = zip(matches.pictures.tolist(), matches.queries[layer].tolist(), matches.targets[layer].tolist(), strict=True)
    return set(rows)


def their_pairs(found: list[tuple[Tensor, Tensor]], own: Targets) -> set[Pair]:
    return {
        (picture, int(query), int(target) + own.starts[picture])
        for picture, (chosen, owners) in enumerate(found)
        for query, target in zip(chosen, owners, strict=True)
    }


def reference(kind: str, costs: MatchCosts) -> Any:
    given: dict[str, Any] = {"class_cost": costs.label, "bbox_cost": costs.box, "giou_cost": costs.giou}
    if kind == "rtdetr":
        named: Any = {f"matcher_{name}": value for name, value in given.items()}
        options = SimpleNamespace(**named, use_focal_loss=True, matcher_alpha=0.25, matcher_gamma=2.0)
        given = {"config": options}
    kinds: dict[str, Any] = {
        "softmax": HungarianMatcher,
        "sigmoid": DeformableDetrHungarianMatcher,
        "rtdetr": RTDetrHungarianMatcher,
    }
    return kinds[kind](**given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("costs", [MatchCosts(), MatchCosts(label=2.0), MatchCosts(label=0.5, box=1.0, giou=4.0)])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "rtdetr"])
def test_every_layer_has_the_pairs_of_transformers(kind: str, costs: MatchCosts, dtype: torch.dtype) -> None:
    logits, boxes = queries(dtype)
    own, theirs = targets(dtype)
    scores: Literal["softmax", "sigmoid"] = "softmax" if kind == "softmax" else "sigmoid"
    found = match(logits, boxes, own, costs, scores=scores)
    matcher = reference(kind, costs)
    for layer in range(LAYERS):
        expected = matcher({"logits": logits[layer], "pred_boxes": boxes[layer]}, theirs)
        assert pairs_of(found, layer) == their_pairs(expected, own)
    assert found.queries.shape == (LAYERS, 3 + 0 + 5 + QUERIES + 1)


def test_costs_are_the_same_in_any_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, boxes = queries(torch.float64)
    own, _ = targets(torch.float64)
    whole = pair_costs(logits, boxes, own, MatchCosts(), scores="softmax")
    monkeypatch.setattr(matching, "_PAIRS", 1)
    assert torch.equal(pair_costs(logits, boxes, own, MatchCosts(), scores="softmax"), whole)
    assert whole.shape == (LAYERS, sum(COUNTS), QUERIES)


def test_no_targets_at_all_are_no_pairs() -> None:
    logits, boxes = queries(torch.float32)
    own, _ = targets(torch.float32, (0,) * len(COUNTS))
    found = match(logits, boxes, own, MatchCosts(), scores="sigmoid")
    assert found.queries.shape == (LAYERS, 0)
    assert found.of(boxes).shape == (LAYERS, 0, 4)


def test_halves_are_matched_in_single_precision() -> None:
    logits, boxes = queries(torch.float32)
    own, _ = targets(torch.float32)
    halves = match(logits.bfloat16(), boxes.bfloat16(), own, MatchCosts(), scores="sigmoid")
    floats = match(logits.bfloat16().float(), boxes.bfloat16().float(), own, MatchCosts(), scores="sigmoid")
    assert all(pairs_of(halves, layer) == pairs_of(floats, layer) for layer in range(LAYERS))


@pytest.mark.parametrize(("place", "value"), [((1, 2, 4), float("nan")), ((2, 2, 0), float("inf"))])
def test_costs_that_are_not_finite_name_the_picture(place: tuple[int, ...], value: float) -> None:
    logits, boxes = queries(torch.float32)
    own, _ = targets(torch.float32)
    logits[place] = value
    with pytest.raises(TrainingError, match=r"c\.jpg: scores or boxes of its queries are not finite"):
        match(logits, boxes, own, MatchCosts(), scores="softmax", ids=["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"])
    with pytest.raises(TrainingError, match="picture 2 of the batch"):
        match(logits, boxes, own, MatchCosts(), scores="softmax")


def test_what_was_matched_can_be_taken_out() -> None:
    logits, boxes = queries(torch.float32)
    own, _ = targets(torch.float32)
    found = match(logits, boxes, own, MatchCosts(), scores="sigmoid")
    for layer in range(LAYERS):
        assert torch.equal(found.of(boxes)[layer], boxes[layer][found.pictures, found.queries[layer]])
        assert pairs_of(found.at(layer), 0) == pairs_of(found, layer)

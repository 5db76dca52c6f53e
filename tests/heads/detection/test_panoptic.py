"""Panoptic maps against transformers' image processor."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.detr.image_processing_detr import DetrImageProcessor

from heads.detection.panoptic import NOTHING, panoptic

SIZE = (53, 71)
Processor: Any = DetrImageProcessor


def scene(seed: int, *, surest: float) -> tuple[Tensor, Tensor]:
    """Twelve queries, of which some are sure of a class or of nothing, and masks that share out the picture."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, 5, generator=generator)
    logits[torch.arange(12), torch.randint(5, (12,), generator=generator)] += surest
    masks = F.interpolate(torch.randn(1, 12, 4, 5, generator=generator) * 9 - 6, size=(20, 28), mode="bicubic")[0]
    return logits, masks


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fused", [(), (0, 1)])
@pytest.mark.parametrize("thresholds", [(0.5, 0.5, 0.8), (0.3, 0.4, 0.5)])
def test_segments_equal_transformers(seed: int, fused: tuple[int, ...], thresholds: tuple[float, float, float]) -> None:
    logits, masks = scene(seed, surest=4.0)
    processor = Processor()
    outputs = SimpleNamespace(logits=logits[None], pred_masks=masks[None])
    names = ("threshold", "mask_threshold", "overlap_mask_area_threshold")
    options = dict(zip(names, thresholds, strict=True))
    expected = processor.post_process_panoptic_segmentation(
        outputs, **options, label_ids_to_fuse=set(fused), target_sizes=[SIZE]
    )[0]
    given = panoptic(
        logits,
        masks,
        SIZE,
        fused=fused,
        threshold=thresholds[0],
        mask_threshold=thresholds[1],
        overlap_threshold=thresholds[2],
    )
    assert given.infos
    # transformers numbers on from a fused class that it meets again, so that two segments can have one number.
    theirs = label_map(expected["segmentation"], [(s["id"], s["label_id"]) for s in expected["segments_info"]])
    ours = label_map(given.segments, [(s.id, s.label) for s in given.infos])
    numbers = [s["id"] for s in expected["segments_info"] if not s["was_fused"]]
    clash = len({(s["id"], s["label_id"]) for s in expected["segments_info"]}) > len(
        {s["id"] for s in expected["segments_info"]}
    )
    if clash or len(set(numbers)) < len(numbers):
        assert fused
        return
    assert torch.equal(ours, theirs)
    assert torch.equal(given.segments.bool(), expected["segmentation"].bool())
    if not fused:
        assert torch.equal(given.segments, expected["segmentation"])
        listed = [(s.id, s.label, s.fused, round(s.score, 6)) for s in given.infos]
        assert listed == [tuple(s.values()) for s in expected["segments_info"]]


def label_map(segments: Tensor, numbers: list[tuple[int, int]]) -> Tensor:
    found = torch.full_like(segments, NOTHING)
    for number, label in numbers:
        found[segments == number] = label
    return found


def test_a_fused_class_is_one_segment_and_ids_stay_apart() -> None:
    """Stuff, a thing, stuff again, another thing: each in a column of its own."""
    logits = torch.full((4, 4), -9.0)
    logits[torch.arange(4), torch.tensor([0, 1, 0, 1])] = 9.0
    masks = torch.full((4, 4, 8), -9.0)
    for query in range(4):
        masks[query, :, 2 * query : 2 * query + 2] = 9.0
    found = panoptic(logits, masks, (4, 8), fused={0})
    assert found.segments[0].tolist() == [1, 1, 2, 2, 1, 1, 3, 3]
    assert [(s.id, s.label, s.fused) for s in found.infos] == [(1, 0, True), (2, 1, False), (3, 1, False)]


def test_a_picture_of_nothing_has_no_segments() -> None:
    found = panoptic(torch.zeros(3, 4), torch.zeros(3, 4, 8), SIZE)
    assert found.infos == ()
    assert found.segments.shape == SIZE
    assert bool((found.segments == NOTHING).all())


def test_independent_classes_have_none_for_nothing() -> None:
    logits = torch.tensor([[-9.0, 9.0], [-9.0, -9.0]])
    found = panoptic(logits, torch.full((2, 4, 4), 9.0), (4, 4), scores="sigmoid")
    assert [s.label for s in found.infos] == [1]
    assert bool((found.segments == 1).all())

"""Denoising queries against transformers', under one seed, and what they may look at."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from heads.detection.boxes import inverse_sigmoid, overlaps, to_corners
from heads.detection.denoising import DenoisingConfig, count_groups, denoise, denoising_matches
from heads.detection.targets import Targets, picture_of_each

CLASSES, QUERIES = 7, 11


@pytest.fixture(params=[torch.float32, torch.float64], autouse=True)
def _precision(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


def targets_of(*counts: int) -> Targets:
    number = sum(counts)
    sides = torch.rand(number, 2) * 0.3 + 0.05
    boxes = torch.cat([torch.rand(number, 2) * 0.6 + 0.2, sides], dim=1)
    labels = torch.randint(CLASSES, (number,))
    return Targets(labels, boxes, picture_of_each(counts, labels.device), counts)


def theirs(targets: Targets, config: DenoisingConfig) -> Any:
    from transformers.models.rt_detr_v2 import modeling_rt_detr_v2

    group: Any = modeling_rt_detr_v2.get_contrastive_denoising_training_group
    labels = [
        {"class_labels": targets.labels[targets.pictures == i], "boxes": targets.boxes[targets.pictures == i]}
        for i in range(len(targets.counts))
    ]
    noise = (config.queries, config.label_noise, config.box_noise)
    return group(labels, CLASSES, QUERIES, lambda x: x, *noise)


@pytest.mark.parametrize("counts", [(3, 0, 5), (1,), (4, 4), (0, 2)])
@pytest.mark.parametrize("queries", [2, 10, 33])
def test_queries_and_mask_are_those_of_transformers(counts: tuple[int, ...], queries: int) -> None:
    torch.manual_seed(0)
    targets = targets_of(*counts)
    config = DenoisingConfig(queries=queries, label_noise=0.8, box_noise=0.7)
    torch.manual_seed(1)
    labels, boxes, mask, facts = theirs(targets, config)
    torch.manual_seed(1)
    ours = denoise(targets, config, num_classes=CLASSES, num_queries=QUERIES)
    assert torch.equal(ours.labels, labels.long())
    torch.testing.assert_close(inverse_sigmoid(ours.boxes), boxes)
    assert torch.equal(ours.visible, mask == 0)
    assert count_groups(targets, config) == facts["dn_num_group"]


@pytest.mark.parametrize("counts", [(3, 0, 5), (2,)])
def test_matches_are_those_of_transformers(counts: tuple[int, ...]) -> None:
    from transformers.loss import loss_rt_detr

    known: Any = loss_rt_detr.RTDetrLoss.get_cdn_matched_indices
    targets, config = targets_of(*counts), DenoisingConfig(queries=20)
    facts = theirs(targets, config)[3]
    labels = [{"class_labels": targets.labels[targets.pictures == i]} for i in range(len(counts))]
    wanted = {
        (picture, int(query), targets.starts[picture] + int(target))
        for picture, pair in enumerate(known(facts, labels))
        for query, target in zip(*pair, strict=True)
    }
    matches = denoising_matches(targets, config, layers=3)
    assert matches.queries.shape == matches.targets.shape == (3, len(wanted))
    for queries, chosen in zip(matches.queries, matches.targets, strict=True):
        found = zip(matches.pictures.tolist(), queries.tolist(), chosen.tolist(), strict=True)
        assert set(found) == wanted


def test_matched_queries_without_noise_are_their_targets() -> None:
    targets, config = targets_of(2, 0, 3), DenoisingConfig(queries=9, label_noise=0, box_noise=0)
    found = denoise(targets, config, num_classes=CLASSES, num_queries=QUERIES)
    matches = denoising_matches(targets, config, layers=1)
    assert torch.equal(matches.of(found.labels[None])[0], targets.labels[matches.targets[0]])
    assert torch.equal(matches.of(found.boxes[None])[0], targets.boxes[matches.targets[0]])


def test_positives_lie_nearer_than_negatives() -> None:
    torch.manual_seed(0)
    targets, config = targets_of(3, 3), DenoisingConfig(queries=300, box_noise=1.0)
    found = denoise(targets, config, num_classes=CLASSES, num_queries=QUERIES)
    matches = denoising_matches(targets, config, layers=1)
    wanted = to_corners(targets.boxes[matches.targets[0]])
    positive, _ = overlaps(to_corners(matches.of(found.boxes[None])[0]), wanted)
    far = found.boxes[matches.pictures, matches.queries[0] + 3]
    negative, _ = overlaps(to_corners(far), wanted)
    assert positive.mean() > negative.mean() + 0.2


def test_no_target_gives_no_query_and_no_match() -> None:
    targets, config = targets_of(0, 0), DenoisingConfig()
    found = denoise(targets, config, num_classes=CLASSES, num_queries=QUERIES)
    assert len(found) == 0
    assert found.boxes.shape == (2, 0, 4)
    assert torch.equal(found.visible, torch.ones(QUERIES, QUERIES, dtype=torch.bool))
    matches = denoising_matches(targets, config, layers=2)
    assert matches.queries.shape == (2, 0)

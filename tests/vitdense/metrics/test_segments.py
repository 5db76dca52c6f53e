"""The metric `panoptic` counts as panopticapi's does, whatever the order of pictures and the number of processes."""

from typing import Any

import numpy as np
import pytest
import torch

from vitdense.contracts import METRICS, Batch, Segments, Target
from vitdense.data.shapes_panoptic import ShapesPanopticConfig
from vitdense.errors import UserError
from vitdense.metrics.panoptic import PanopticQuality, Segment
from vitdense.metrics.segments import Panoptic

CLASSES, THINGS = ("sky", "cat", "dog"), (False, True, True)


def picture_of(seed: int) -> tuple[Segments, Target]:
    """A random truth, one segment of it a crowd, and a prediction that is right in most places."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.nn.functional.interpolate(
        torch.randint(0, 6, (1, 1, 3, 4), generator=generator).double(), (24, 32)
    ).long()[0, 0]
    masks = torch.stack([true == number for number in range(1, 6)])
    labels = torch.randint(0, 3, (5,), generator=generator)
    kept = masks.any((1, 2))
    guess = torch.where(torch.rand(true.shape, generator=generator) < 0.15, 0, true.roll(1, 1)).to(torch.int32)
    found = labels.clone()
    found[seed % 5] = (found[seed % 5] + 1) % 3
    crowd = torch.arange(5) == 3
    return Segments(guess, found, torch.ones(5)), Target(masks=masks[kept], labels=labels[kept], crowd=crowd[kept])


def metric_of(pictures: list[tuple[Segments, Target]]) -> Panoptic:
    metric = Panoptic(CLASSES, THINGS)
    for start in range(0, len(pictures), 3):
        some = pictures[start : start + 3]
        batch: Batch = {"targets": [target for _, target in some]}
        metric.update([found for found, _ in some], batch)
    return metric


def test_results_are_those_of_files() -> None:
    pictures = [picture_of(seed) for seed in range(12)]
    quality = PanopticQuality(THINGS)
    for found, target in pictures:
        truth = np.zeros((24, 32), np.int64)
        for number, mask in enumerate(target["masks"].numpy(), start=1):
            truth[mask] = number
        labels, crowd = target["labels"].tolist(), target["crowd"].tolist()
        segments = {i + 1: Segment(labels[i], crowd[i]) for i in range(len(labels))}
        ids = found.ids.numpy().astype(np.int64)
        guesses = {number: Segment(int(found.labels[number - 1])) for number in np.unique(ids).tolist() if number}
        quality.add(quality.measure(truth, segments, ids, guesses))
    assert 0.1 < quality.compute()["PQ"] < 0.9
    results = metric_of(pictures).compute()
    assert list(results)[:3] == ["PQ", "SQ", "RQ"]
    assert results == pytest.approx(quality.compute(), abs=1e-12)


def test_processes_and_order_change_nothing() -> None:
    pictures = [picture_of(seed) for seed in range(12)]
    whole = metric_of(pictures).compute()
    parts = [metric_of(pictures[rank::3][::-1]) for rank in range(3)]
    counts = torch.stack([part.counts for part in parts]).sum(0)
    rows = torch.cat([part._rows() for part in parts])
    parts[0].reduce(lambda _: counts)
    parts[0].gather(lambda _: rows)
    assert parts[0].compute() == whole
    assert parts[0].details()["class_PQ"] == metric_of(pictures).details()["class_PQ"]


def test_the_truth_itself_is_perfect() -> None:
    samples = ShapesPanopticConfig(size=64, val_size=4).build("val")
    metric = METRICS.create("panoptic", {}).build(samples)
    for index in range(4):
        target = samples[0, index]["target"]
        ids = (target["masks"] * torch.arange(1, len(target["labels"]) + 1)[:, None, None]).sum(0).to(torch.int32)
        assert ids.min() > 0, "things and stuff share out every pixel"
        found = Segments(ids, target["labels"], torch.ones(len(target["labels"])))
        metric.update([found], {"targets": [target]})
    results = metric.compute()
    assert results["PQ"] == results["PQ_th"] == results["PQ_st"] == 1.0


def test_mistakes_are_told() -> None:
    found, target = picture_of(0)
    metric = Panoptic(CLASSES, THINGS)
    with pytest.raises(UserError, match="needs a head that finds segments"):
        metric.update([torch.zeros(24, 32)], {"targets": [target]})
    wrong: list[tuple[Any, str]] = [
        ({**target, "masks": target["masks"][:, :9]}, r"are \(24, 32\) and the true masks \(9, 32\)"),
        ({**target, "labels": target["labels"] + 7}, r"the truth has labels .* allowed are 0\.\.2"),
        ({"labels": target["labels"]}, "needs a data set with masks"),
    ]
    for given, message in wrong:
        with pytest.raises(UserError, match=message):
            metric.update([found], {"targets": [given], "ids": ["here"]})
    with pytest.raises(UserError, match="needs a data set of things and stuff"):
        metric.update([found], {})

"""Labels by similarity equal the published protocol's, whose affinities are made whole."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from vitdense.propagation import propagate_labels

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("grid", "count", "neighbourhood", "topk", "temperature"),
    [
        ((11, 19), 3, 4, 5, 0.1),
        ((8, 16), 8, 12, 5, 0.1),
        ((9, 7), 2, 0, 5, 0.1),
        ((17, 10), 1, 1, 7, 0.07),
        ((1, 13), 2, 3, 1, 0.1),
        ((5, 23), 4, 2, 1000, 0.5),
        ((1, 1), 1, 12, 5, 0.1),
    ],
)
def test_labels_equal_those_of_the_whole_affinity(
    affinity: Any, grid: tuple[int, int], count: int, neighbourhood: int, topk: int, temperature: float, dtype: Any
) -> None:
    query, sources = torch.randn(*grid, 16, dtype=dtype), torch.randn(count, *grid, 16, dtype=dtype)
    query, sources = F.normalize(query, dim=-1), F.normalize(sources, dim=-1)
    labels = torch.rand(count, *grid, 4, dtype=dtype)
    found = propagate_labels(query, sources, labels, neighbourhood=neighbourhood, topk=topk, temperature=temperature)
    weights = affinity(query, sources, neighbourhood, topk, temperature)
    expected = torch.einsum("nabde,nabk->dek", weights, labels)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=TOLERANCES[dtype], rtol=0)


def test_all_that_are_as_similar_as_the_last_count() -> None:
    """Four sources look like the query, and the labels of all of them are averaged, though two are asked for."""
    query = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 1, 2)
    sources = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]], dtype=torch.float64)[:, None, None]
    labels = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0], dtype=torch.float64)[:, None, None, None]
    assert propagate_labels(query, sources, labels, topk=2).item() == pytest.approx(2.5, abs=1e-12)


def test_what_is_too_far_away_is_not_seen() -> None:
    features = F.normalize(torch.randn(1, 30, 8, dtype=torch.float64), dim=-1)
    sources = features.roll(5, dims=1)[None]
    labels = torch.eye(30, dtype=torch.float64)[None, None]  # where each label comes from
    near = propagate_labels(features, sources, labels, neighbourhood=4, topk=1)
    far = propagate_labels(features, sources, labels, neighbourhood=5, topk=1)
    places = torch.arange(30)
    assert ((near[0].argmax(-1) - places).abs() <= 4).all()
    assert (far[0].argmax(-1)[:25] == places[:25] + 5).all()


def test_low_temperatures_stay_finite() -> None:
    features = F.normalize(torch.randn(3, 4, 8), dim=-1)
    sources = F.normalize(torch.randn(2, 3, 4, 8), dim=-1)
    labels = torch.rand(2, 3, 4, 2)
    found = propagate_labels(features, sources, labels, temperature=1e-3)
    best = torch.einsum("abc,ndec->abnde", features, sources).flatten(2).argmax(-1)
    assert found.isfinite().all()
    torch.testing.assert_close(found, labels.flatten(0, 2)[best], atol=0.05, rtol=0)

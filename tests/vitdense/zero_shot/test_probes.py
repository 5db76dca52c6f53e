"""Nearest neighbours beside votes counted by hand, and the linear probe beside scipy's minimum."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from vitdense.errors import UserError
from vitdense.zero_shot import probes
from vitdense.zero_shot.features import Features
from vitdense.zero_shot.probes import fit_linear_probe, nearest_logits


def draw(count: int = 90, noise: float = 1.5) -> Features:
    """Three classes in eight dimensions, whose scales differ."""
    labels = torch.arange(count) % 3
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(4))
    vectors = centres[labels] + noise * torch.randn(count, 8)
    return Features(vectors * torch.logspace(-2, 2, 8) + 5, labels)


@pytest.mark.parametrize("rows", [1024, 7])
def test_votes_are_those_of_the_nearest_by_cosine(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "ROWS", rows)
    train, asked = draw(), torch.randn(20, 8)
    found = nearest_logits(train, asked, 4, k=5, temperature=0.1)
    for row, vector in zip(found, asked, strict=True):
        near = sorted(
            zip(F.cosine_similarity(vector, train.vectors).tolist(), train.labels.tolist(), strict=True), reverse=True
        )
        votes = [0.0] * 4
        for cosine, label in near[:5]:
            votes[label] += math.exp(cosine / 0.1)
        assert row.tolist() == pytest.approx(votes, rel=1e-4)


def test_no_more_neighbours_than_there_are() -> None:
    train = draw(6)
    assert torch.equal(nearest_logits(train, train.vectors, 3, k=1000), nearest_logits(train, train.vectors, 3, k=6))


def test_the_linear_probe_is_the_minimum() -> None:
    train, penalty = draw(), 0.01
    found = fit_linear_probe(train, 3, penalties=[penalty])
    vectors, labels = train.vectors.double().numpy(), train.labels.numpy()
    standard = (vectors - vectors.mean(0)) / vectors.std(0)

    def loss(flat: np.ndarray) -> float:
        weights, bias = flat[:24].reshape(3, 8), flat[24:]
        logits = standard @ weights.T + bias
        shifted = logits - logits.max(1, keepdims=True)
        picked = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(1))
        return float(-picked.mean() + penalty / 2 * (weights**2).sum())

    theirs = minimize(loss, np.zeros(27), method="BFGS", options={"gtol": 1e-7})
    ours = np.concatenate([found.weights.numpy().ravel(), found.bias.numpy()])
    assert loss(ours) == pytest.approx(theirs.fun, abs=1e-9)
    np.testing.assert_allclose(found.weights.numpy().ravel(), theirs.x[:24], atol=1e-4)
    expected = standard @ theirs.x[:24].reshape(3, 8).T
    apart = found.logits(train.vectors).numpy() - expected
    np.testing.assert_allclose(
        apart - apart[:, :1], (found.bias - found.bias[0]).numpy()[None].repeat(90, 0), atol=1e-3
    )


def test_the_penalty_is_chosen_on_what_is_held_out() -> None:
    """Labels that the vectors say nothing of: the strongest is as good as any."""
    train = Features(torch.randn(60, 30), torch.arange(60) % 2)
    assert fit_linear_probe(train, 2).penalty >= 0.1
    sure = fit_linear_probe(draw(noise=0.05), 3)
    assert (sure.logits(draw(noise=0.05).vectors).argmax(1) == torch.arange(90) % 3).double().mean() > 0.95


def test_a_probe_is_the_same_each_time_and_fits_all_pictures() -> None:
    train = draw()
    first, again = fit_linear_probe(train, 3), fit_linear_probe(train, 3)
    assert torch.equal(first.weights, again.weights)
    assert torch.equal(first.weights, fit_linear_probe(train, 3, penalties=[first.penalty]).weights)


def test_a_channel_that_never_changes_harms_nothing() -> None:
    train = draw()
    train.vectors[:, 2] = 3.0
    assert fit_linear_probe(train, 3).logits(train.vectors).isfinite().all()


@pytest.mark.parametrize(
    ("vectors", "labels", "message"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1]), "3 vectors and 2 labels"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), "0 vectors and 0 labels"),
        (torch.zeros(2, 2), torch.tensor([0, 3]), r"labels must lie in 0\.\.2, given \[0, 3\]"),
        (torch.zeros(2, 2), torch.tensor([0, 1]), "no class has two pictures"),
    ],
)
def test_what_can_not_be_learnt_from_is_told(vectors: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_linear_probe(Features(vectors, labels), 3)

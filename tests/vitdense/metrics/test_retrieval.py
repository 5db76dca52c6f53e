"""Recall of texts for pictures and of pictures for texts, beside a table of all pairs that is sorted."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import Batch, Embeddings
from vitdense.errors import UserError
from vitdense.metrics import retrieval
from vitdense.metrics.retrieval import Retrieval


def draw(pictures: int = 60) -> list[Embeddings]:
    """Pictures with one to five captions, each near its picture."""
    found = []
    for _ in range(pictures):
        image = torch.randn(16)
        texts = image + 2.2 * torch.randn(int(torch.randint(1, 6, ())), 16)
        found.append(Embeddings(F.normalize(image, dim=0), F.normalize(texts, dim=1)))
    return found


def counted(found: list[Embeddings], size: int = 7) -> Retrieval:
    metric = Retrieval()
    for start in range(0, len(found), size):
        metric.update(found[start : start + size], Batch())
    return metric


def by_sorting(found: list[Embeddings]) -> dict[str, float]:
    """As CLIP_benchmark counts: whether one of a row's own is among the first k of the sorted row."""
    owner = torch.cat([torch.full((len(each.texts),), index) for index, each in enumerate(found)])
    table = torch.stack([each.image for each in found]) @ torch.cat([each.texts for each in found]).T
    own = owner == torch.arange(len(found))[:, None]

    def recall(scores: Tensor, own: Tensor, k: int) -> float:
        return own.gather(1, scores.argsort(dim=1, descending=True)[:, :k]).any(1).double().mean().item()

    images = {f"image_to_text_R@{k}": recall(table, own, k) for k in (1, 5, 10)}
    return images | {f"text_to_image_R@{k}": recall(table.T, own.T, k) for k in (1, 5, 10)}


@pytest.mark.parametrize("rows", [1024, 13])
def test_recall_equals_that_of_a_sorted_table(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of rows that are compared at a time."""
    monkeypatch.setattr(retrieval, "ROWS", rows)
    found = draw()
    results = counted(found).compute()
    assert results == pytest.approx(by_sorting(found), abs=1e-12)
    assert 0.1 < results["image_to_text_R@1"] < results["image_to_text_R@5"] < results["image_to_text_R@10"] <= 1


def test_equal_embeddings_are_found_by_nobody() -> None:
    same = F.normalize(torch.ones(4), dim=0)
    results = counted([Embeddings(same, same[None])] * 30).compute()
    assert set(results.values()) == {0.0}  # each stands at rank 15.5


def test_one_picture_is_found() -> None:
    assert set(counted(draw(1)).compute().values()) == {1.0}


@pytest.mark.parametrize("shares", [(25, 35), (60, 0), (0, 60)])
def test_processes_change_nothing(shares: tuple[int, int]) -> None:
    """One of them may have seen no picture, and knows not even how wide they are."""
    found = draw()
    parts = [counted(found[: shares[0]]), counted(found[shares[0] :])]
    calls: list[list[Tensor]] = [[], []]

    def record(place: int, given: list[Tensor]) -> None:
        """What each process hands over, given what all did in the calls before."""

        def gather(rows: Tensor) -> Tensor:
            number = len(calls[place])
            calls[place].append(rows)
            return given[number] if number < len(given) else rows

        metric = counted(found[: shares[0]] if place == 0 else found[shares[0] :])
        metric.gather(gather)

    width = [torch.tensor([0 if not share else 16 for share in shares])]
    for place in range(2):
        record(place, width)
    together = [torch.cat(pair) for pair in zip(*calls, strict=True)]
    answers = iter(together)
    parts[0].gather(lambda rows: next(answers))
    assert parts[0].compute() == pytest.approx(counted(found).compute(), abs=1e-12)


def test_nothing_seen_is_told() -> None:
    with pytest.raises(UserError, match="saw no pictures with captions"):
        Retrieval().compute()

"""Masks of queries: their losses against transformers', from logits and from embeddings, and their size."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.loss.loss_for_object_detection import ImageLoss

from heads.detection.masks import QueryMasks, mask_losses, masks_at, masks_of, multiplied
from heads.detection.matching import Matches
from heads.detection.targets import Targets, picture_of_each
from vitdense.contracts import Batch, Outputs, Target
from vitdense.errors import UserError

TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
QUERIES = 6
Image: Any = ImageLoss


def scene(counts: list[int], dtype: torch.dtype, *, padded: bool) -> tuple[Batch, Targets, Matches]:
    """Two pictures on a canvas of 45 x 61; targets are answered by queries in no order."""
    generator = torch.Generator().manual_seed(1)
    sizes = [(45, 61), (31, 50)] if padded else [(45, 61), (45, 61)]
    given = [
        Target(masks=torch.rand(n, *size, generator=generator) > 0.5, labels=torch.zeros(n, dtype=torch.int64))
        for n, size in zip(counts, sizes, strict=True)
    ]
    batch = Batch(images=torch.zeros(2, 3, 45, 61), targets=given)
    if padded:
        batch["extents"] = torch.tensor(sizes)
    labels = torch.zeros(sum(counts), dtype=torch.int64)
    targets = Targets(labels, torch.rand(sum(counts), 4), picture_of_each(counts, labels.device), tuple(counts))
    kept = [min(n, QUERIES) for n in counts]
    queries = [torch.randperm(QUERIES, generator=generator)[:n] for n in kept]
    rows = [
        start + torch.randperm(n, generator=generator)[:k]
        for start, n, k in zip(targets.starts, counts, kept, strict=False)
    ]
    other = torch.zeros(1, sum(kept), dtype=torch.int64)  # of a layer before, which masks don't learn from
    matches = Matches(
        picture_of_each(kept, labels.device),
        torch.cat([other, torch.cat(queries)[None]]),
        torch.cat([other, torch.cat(rows)[None]]),
    )
    return batch, targets, matches


def outputs_of(dtype: torch.dtype) -> Outputs:
    masks = torch.randn(2, QUERIES, 12, 16, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return {"logits": torch.zeros(2, QUERIES, 3, dtype=dtype), "masks": masks.requires_grad_()}


@pytest.mark.parametrize(("dtype", "bound"), TOLERANCES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("counts", [[3, 2], [0, 4], [9, 1]])
@pytest.mark.parametrize("at_once", [1, 2**23])
def test_losses_and_gradients_equal_transformers(
    counts: list[int], padded: bool, dtype: torch.dtype, bound: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.detection.masks._PIXELS_AT_ONCE", at_once)
    batch, targets, matches = scene(counts, dtype, padded=padded)
    outputs, number = outputs_of(dtype), torch.tensor(float(sum(counts)))
    own = [matches.pictures == picture for picture in range(2)]
    pairs = [
        (matches.queries[-1, mine], matches.targets[-1, mine] - start)
        for mine, start in zip(own, targets.starts, strict=False)
    ]
    labels = [
        {"masks": nn.functional.pad(t["masks"], (0, 61 - t["masks"].shape[-1], 0, 45 - t["masks"].shape[-2]))}
        for t in batch["targets"]
    ]
    criterion = Image(None, 2, 0.1, ["masks"])
    expected = criterion.loss_masks({"pred_masks": outputs["masks"]}, labels, pairs, number)
    given = mask_losses(outputs, matches, targets, batch, number)
    for ours, theirs in zip(given, (expected["loss_mask"], expected["loss_dice"]), strict=True):
        assert theirs > 0.01
        assert abs(ours.item() - theirs.item()) < bound
    ours, theirs = (
        torch.autograd.grad(sum(losses), outputs["masks"])[0] for losses in (given, tuple(expected.values()))
    )
    assert (ours - theirs).abs().max() < bound * theirs.abs().max()


@pytest.mark.parametrize("counts", [[3, 2], [0, 4], [0, 0]])
def test_embeddings_and_matched_masks_lose_what_all_masks_do(counts: list[int]) -> None:
    torch.manual_seed(0)
    batch, targets, matches = scene(counts, torch.float32, padded=True)
    module = QueryMasks((5, 7), 8, 12)
    queries = torch.randn(2, QUERIES, 8, requires_grad=True)
    factors = module(queries, [torch.randn(2, 5, 12, 16), torch.randn(2, 7, 6, 8)])
    factors["logits"] = torch.zeros(2, QUERIES, 3)
    whole = {**multiplied(factors), "logits": factors["logits"]}
    matched = {"matched_masks": matches.of(whole["masks"][None].expand(2, -1, -1, -1, -1))[-1]}
    number = torch.tensor(1.0)
    losses = [
        torch.stack(mask_losses(each, matches, targets, batch, number))
        for each in (whole, factors, {**matched, "logits": factors["logits"]})
    ]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])
    torch.autograd.backward(losses[1].sum())
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert bool(parameter.grad.any()) == (sum(counts) > 0 and parameter.ndim > 0), name


def test_masks_that_are_missing_or_too_large_are_named() -> None:
    batch, targets, matches = scene([1, 1], torch.float32, padded=False)
    small = Batch(images=torch.zeros(2, 3, 32, 32), targets=batch["targets"])
    bare = Batch(images=batch["images"], targets=[Target(labels=t["labels"]) for t in batch["targets"]])
    for wrong, message in ((small, r"larger than its image \(32, 32\)"), (bare, "picture 0 have only labels")):
        with pytest.raises(UserError, match=message):
            mask_losses(outputs_of(torch.float32), matches, targets, wrong, torch.tensor(1.0))


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 2**23])
def test_masks_at_a_size_show_the_picture_without_its_padding(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask whose logits are the column: half of the picture, wherever the padding ends."""
    monkeypatch.setattr("heads.detection.masks._PIXELS_AT_ONCE", at_once)
    columns = torch.arange(32.0).expand(3, 32, 32)
    batch = Batch(images=torch.zeros(2, 3, 128, 128), extents=torch.tensor([[128, 128], [96, 64]]))
    for picture, middle in ((0, 15.6), (1, 7.6)):
        found = masks_at(columns - middle, (48, 80), batch, picture)
        assert found.shape == (3, 48, 80)
        assert found.dtype == torch.bool
        assert not found[:, :, :40].any()
        assert found[:, :, 41:].all()
    assert masks_at(columns[:0], (48, 80), batch, 0).shape == (0, 48, 80)


@torch.no_grad()
def test_chosen_masks_are_those_of_all() -> None:
    torch.manual_seed(0)
    factors: dict[str, Tensor] = {"mask_embeddings": torch.randn(2, 6, 4), "pixel_embeddings": torch.randn(2, 4, 3, 5)}
    chosen = torch.tensor([4, 1])
    torch.testing.assert_close(masks_of(factors, 1, chosen), masks_of(multiplied(factors), 1, chosen))

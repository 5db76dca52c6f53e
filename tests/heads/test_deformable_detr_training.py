"""Deformable DETR by itself: what learns, what is left out, and graphs."""

from typing import Any

import pytest
import torch

from heads import create_head
from tests.heads.tiny_deformable_detr import (
    CLASSES,
    KINDS,
    LEVELS,
    QUERIES,
    REFINE,
    TINY,
    TWO_STAGE,
    a_batch,
    maps,
    randomise,
)
from vitdense.contracts import Batch, Level
from vitdense.errors import UserError

NOISE: dict[str, Any] = {"denoising": {"queries": 6}}


@pytest.mark.parametrize("name", ["deformable_detr", "dino"])
@pytest.mark.parametrize("kind", [{}, TWO_STAGE, {**TWO_STAGE, **NOISE}, {**TWO_STAGE, "masks": True}], ids=str)
def test_every_parameter_is_trained_and_every_loss_is_finite(kind: dict[str, Any], name: str) -> None:
    head = create_head(name, LEVELS, num_classes=CLASSES, **{**TINY, **kind})
    batch = a_batch((75, 109), ((75, 80), (50, 109)), torch.float32)
    for target, (height, width) in zip(batch["targets"], batch["extents"].tolist(), strict=True):
        target["masks"] = torch.rand(len(target["labels"]), height, width) < 0.5
    randomise(head)
    losses = head.losses(head(maps(75, 109), batch), batch)
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()  # type: ignore[no-untyped-call]
    idle = [name for name, each in head.named_parameters() if each.grad is None or not each.grad.isfinite().all()]
    assert idle == []


@torch.no_grad()
def test_denoising_queries_change_nothing_for_the_others() -> None:
    head = create_head("deformable_detr", LEVELS, num_classes=CLASSES, **TINY, **TWO_STAGE, **NOISE).double()
    randomise(head)
    batch, features = a_batch((75, 109), None, torch.float64), maps(75, 109, torch.float64)
    noisy, plain = head(features, batch), head(features, {"images": batch["images"]})
    assert noisy["denoising_logits"].shape == (3, 2, 12, CLASSES)  # as often as 6 queries hold 3 targets, twice
    for name, each in plain.items():
        torch.testing.assert_close(noisy[name], each, atol=1e-12, rtol=0)
    losses = head.losses(noisy, batch)
    assert {name for name in losses if "_dn" in name} == {
        f"{kind}_dn_{layer}" for kind in ("loss_ce", "loss_bbox", "loss_giou") for layer in range(3)
    }


@torch.no_grad()
def test_pictures_without_targets_are_learned_from_too() -> None:
    head = create_head("dino", LEVELS, num_classes=CLASSES, **TINY)
    batch = a_batch((75, 109), None, torch.float32)
    batch["targets"] = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
    assert all(each.isfinite() for each in head.losses(head(maps(75, 109), batch), batch).values())


@torch.no_grad()
def test_masks_are_given_at_the_pictures_size() -> None:
    head = create_head("deformable_detr", LEVELS, num_classes=CLASSES, **TINY, masks=True).eval()
    batch = a_batch((75, 109), None, torch.float32)
    outputs = head(maps(75, 109), batch)
    assert outputs["masks"].shape == (2, QUERIES, 10, 14)
    assert head.predict(outputs, batch)[0].masks.shape == (QUERIES * CLASSES, 75, 109)


def test_looking_forward_twice_reaches_the_layer_before() -> None:
    reached = []
    for twice in (False, True):
        torch.manual_seed(0)
        options = {**TINY, **REFINE, "look_forward_twice": twice}
        head = create_head("deformable_detr", LEVELS, num_classes=CLASSES, **options).double()
        randomise(head)
        outputs = head(maps(64, 96, torch.float64), {})
        first, last = head.get_parameter("bbox_embed.0.layers.2.bias"), outputs["layer_boxes"][1].sum()
        (gradient,) = torch.autograd.grad(last, first, allow_unused=True)
        reached.append(gradient is not None and bool(gradient.any()))
        reached.append(outputs["layer_boxes"].detach())
    assert reached[0] is False
    assert reached[2] is True
    torch.testing.assert_close(reached[1], reached[3], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "levels",
    [LEVELS, (Level(6, 4), *LEVELS), (Level(8, 16),), (Level(8, 16),) * 3, (Level(8, 14), Level(9, 28))],
    ids=str,
)
def test_every_choice_of_levels_learns(levels: tuple[Level, ...]) -> None:
    head = create_head("deformable_detr", levels, num_classes=CLASSES, **{**TINY, **TWO_STAGE})
    batch = a_batch((50, 67), None, torch.float32)
    losses = head.losses(head(maps(50, 67, levels=levels), batch), batch)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(each.isfinite() for each in losses.values())


@torch.no_grad()
def test_skipped_levels_are_as_if_they_were_not_there() -> None:
    outputs = []
    for levels, skipped in (((Level(6, 4), *LEVELS), 1), (LEVELS, 0)):
        head = create_head("deformable_detr", levels, num_classes=CLASSES, **TINY, skip_levels=skipped).eval()
        randomise(head)
        features = maps(75, 109)
        outputs.append(head([torch.randn(2, 6, 19, 28)] * skipped + features, {}))
    assert torch.equal(outputs[0]["logits"], outputs[1]["logits"])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_runs_as_one_exported_and_one_compiled_graph(kind: dict[str, bool]) -> None:
    head = create_head("deformable_detr", LEVELS, num_classes=CLASSES, **TINY, **kind).eval()
    randomise(head)
    batch: Batch = {"images": torch.zeros(2, 3, 50, 67), "extents": torch.tensor([[50, 60], [40, 67]])}
    expected = head(maps(50, 67), batch)
    exported = torch.export.export(head, (maps(50, 67), batch)).module()
    compiled: Any = torch.compile(head, fullgraph=True, backend="eager")
    for run_graph in (exported, compiled):
        for name, value in run_graph(maps(50, 67), batch).items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)


def test_autocast_stays_close() -> None:
    head = create_head("deformable_detr", LEVELS, num_classes=CLASSES, **TINY, **TWO_STAGE)
    batch = a_batch((75, 109), None, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = head.losses(head(maps(75, 109), batch), batch)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(each.isfinite() and each.dtype == torch.float32 for each in losses.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"two_stage": True}, "two_stage needs with_box_refine: true"),
        ({"channels": 48}, "channels 48 must divide by 32"),
        ({"mixed_queries": True}, "mixed_queries needs two_stage: true"),
        (NOISE, "denoising needs two_stage: true"),
        ({"look_forward_twice": True}, "look_forward_twice needs with_box_refine: true"),
        ({"skip_levels": 3}, "skips 3 levels, but there are 3"),
        ({"num_feature_levels": 2}, "num_feature_levels 2, but there are 3 levels"),
    ],
    ids=str,
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_head("deformable_detr", LEVELS, num_classes=CLASSES, **options)

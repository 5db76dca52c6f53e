"""The rtdetr head against transformers' RT-DETRv2, at sizes and on levels that it knows and that it doesn't."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from heads import create_head
from heads.detection.boxes import to_corners
from vitdense.contracts import Level
from vitdense.errors import UserError

SINGLE, DOUBLE = (torch.float32, 1e-5), (torch.float64, 1e-9)
Make = Callable[..., Any]
# Options of theirs, and of ours where they have other names.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "published": ({}, {}),
    "half as wide": (
        {"hidden_expansion": 0.5, "activation_function": "relu"},
        {"hidden_expansion": 0.5, "activation": "relu"},
    ),
    "discrete": ({"decoder_method": "discrete"}, {"decoder_method": "discrete"}),
    "norms first, two layers": (
        {"normalize_before": True, "encoder_layers": 2, "encoder_activation_function": "relu", "decoder_n_points": 3},
        {"normalize_before": True, "encoder_layers": 2, "encoder_activation": "relu", "decoder_points": 3},
    ),
    "four levels": (
        {"num_feature_levels": 4, "decoder_n_levels": 4, "decoder_offset_scale": 0.7, "layer_norm_eps": 1e-4},
        {"num_levels": 4, "offset_scale": 0.7, "layer_norm_eps": 1e-4},
    ),
}


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference. Theirs is in double precision where it can be: it rounds as much as ours does."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().mean().clamp(min=1))


def exact_scales(model: Any) -> None:
    """Their buffer of 1 / points is in single precision, whatever the model is in."""
    for name, buffer in model.named_buffers():
        if name.endswith("_points_scale"):
            buffer.copy_(1 / (1 / buffer).round())


@pytest.mark.parametrize("precision", [SINGLE, DOUBLE], ids=["single", "double"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_answers_equal_transformers(
    variant: str, precision: tuple[torch.dtype, float], make_reference: Make, make_ours: Make, make_maps: Make
) -> None:
    dtype, bound = precision
    given, ours_given = VARIANTS[variant]
    theirs = make_reference("rtdetr", **given).double().eval()
    exact_scales(theirs)
    ours = make_ours("rtdetr", theirs, **ours_given).to(dtype)
    theirs.model.backbone.maps = make_maps(96, 160, torch.float64)
    expected = theirs(torch.zeros(2, 3, 96, 160, dtype=torch.float64))
    outputs = ours(make_maps(96, 160, dtype), {"images": torch.zeros(2, 3, 96, 160)})
    assert float(expected.logits.std()) > 0.1
    assert apart(outputs["logits"], expected.logits) < bound
    assert apart(outputs["boxes_cxcywh"], expected.pred_boxes) < bound


@pytest.mark.parametrize("precision", [SINGLE, DOUBLE], ids=["single", "double"])
@torch.no_grad()
def test_any_size_is_taken_where_transformers_stops(
    precision: tuple[torch.dtype, float],
    make_reference: Make,
    make_ours: Make,
    make_maps: Make,
    cut_after_doubling: Make,
) -> None:
    from transformers.models.rt_detr_v2 import modeling_rt_detr_v2

    dtype, bound = precision
    theirs = make_reference("rtdetr").double().eval()
    ours, maps = make_ours("rtdetr", theirs).to(dtype), make_maps(250, 333, torch.float64)
    theirs.model.backbone.maps = maps
    images = torch.zeros(2, 3, 250, 333, dtype=torch.float64)
    outputs = ours([each.to(dtype) for each in maps], {"images": images})
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        theirs(images)
    cut_after_doubling(modeling_rt_detr_v2, [tuple(each.shape[-2:]) for each in reversed(maps[:-1])])
    expected = theirs(images)
    assert apart(outputs["logits"], expected.logits) < bound
    assert apart(outputs["boxes_cxcywh"], expected.pred_boxes) < bound


def theirs_by_our_names(losses: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    found = {}
    for name, value in losses.items():
        kind, _, index = name.partition("_aux_")
        if index == str(layers - 1):
            found[f"{kind}_encoder_0"] = value
        else:
            found[f"{kind}_{index}" if index else kind] = value
    return found


@pytest.mark.parametrize("precision", [SINGLE, DOUBLE], ids=["single", "double"])
@pytest.mark.parametrize("denoising", [0, 10])
def test_losses_and_gradients_equal_transformers(
    denoising: int,
    precision: tuple[torch.dtype, float],
    make_reference: Make,
    make_ours: Make,
    make_maps: Make,
    make_batch: Make,
    named_as_ours: Make,
) -> None:
    dtype, bound = precision
    torch.set_default_dtype(dtype)  # their noise has the default type, ours that of the boxes
    try:
        theirs = make_reference("rtdetr", num_denoising=denoising).to(dtype).train()
        ours = make_ours("rtdetr", theirs, denoising={"queries": denoising})
        theirs.model.backbone.maps = make_maps(96, 160, dtype)
        batch, labels = make_batch(96, 160, dtype)
        torch.manual_seed(5)
        expected = theirs(torch.zeros(2, 3, 96, 160), labels=labels)
        torch.manual_seed(5)
        losses = ours.losses(ours(make_maps(96, 160, dtype), batch), batch)
    finally:
        torch.set_default_dtype(torch.float32)
    wanted = theirs_by_our_names(expected.loss_dict, 3)
    assert losses.keys() == wanted.keys()
    assert len(losses) == (21 if denoising else 12)
    for name, value in losses.items():
        assert apart(value, wanted[name].to(dtype)) < bound, name
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    expected.loss.backward()
    own = dict(ours.named_parameters())
    compared = 0
    for name, parameter in theirs.model.named_parameters():
        if parameter.grad is not None:
            mine = own[named_as_ours(name)].grad
            assert apart(mine, parameter.grad) < 10 * bound, name
            compared += 1
    assert compared == len(own)


def head_of(*levels: Level, **options: Any) -> Any:
    sizes = {"hidden_dim": 16, "encoder_hidden_dim": 16, "encoder_heads": 2, "decoder_heads": 2, "decoder_layers": 2}
    sizes |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 9, "max_detections": 9}
    return create_head("rtdetr", levels, num_classes=3, **{**sizes, **options})


@pytest.mark.parametrize("name", ["rtdetr", "dfine"])
@pytest.mark.parametrize(
    ("strides", "read"),
    [
        ((4, 8, 16, 32), (1, 2, 3)),
        ((16, 16, 16, 16), (3,)),
        ((16,), (0,)),
        ((8, 32), (0, 1)),
        ((14,), (0,)),
    ],
    ids=["Swin", "plain ViT", "one level", "a stride left out", "patches of 14"],
)
def test_levels_of_any_backbone_learn_and_predict(
    name: str, strides: tuple[int, ...], read: tuple[int, ...], make_batch: Make, make_maps: Make
) -> None:
    levels = tuple(Level(6 + i, stride) for i, stride in enumerate(strides))
    options: dict[str, Any] = {"hidden_dim": 16, "encoder_hidden_dim": 16, "encoder_heads": 2, "decoder_heads": 2}
    options |= {"decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 9}
    head: Any = create_head(name, levels, num_classes=5, **options)
    assert tuple(head.chosen) == read
    batch, _ = make_batch(125, 167, torch.float32)
    maps = [each.requires_grad_() for each in make_maps(125, 167, torch.float32, levels)]
    losses = head.losses(head(maps, batch), batch)
    total = torch.stack(list(losses.values())).sum()
    assert bool(total.isfinite())
    torch.autograd.backward(total)
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert all(bool(maps[index].grad.abs().sum() > 0) for index in read)
    head.eval()
    found = head.predict(head(maps, batch), {**batch, "sizes": [(125, 167), (60, 80)]})
    for detections, (height, width) in zip(found, [(125, 167), (60, 80)], strict=True):
        assert detections.boxes.shape == (45, 4)
        assert bool((detections.boxes >= 0).all())
        assert bool((detections.boxes <= torch.tensor([width, height, width, height])).all())


def test_strides_that_are_no_multiples_are_refused() -> None:
    with pytest.raises(UserError, match=r"strides are multiples of each other; got strides \[14, 16\]"):
        head_of(Level(4, 14), Level(4, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dim": 18, "decoder_heads": 4}, "hidden_dim is 18, which doesn't divide by 4 heads"),
        ({"decoder_points": (3, 6)}, "decoder_points has 2 numbers for 3 levels"),
        ({"encoder_hidden_dim": 18}, "encoder_hidden_dim is 18; positions need a multiple of 4"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        head_of(Level(4, 16), **options)


def test_a_batch_without_things_gives_finite_losses_under_the_same_names(make_batch: Make, make_maps: Make) -> None:
    for name in ("rtdetr", "dfine"):
        head: Any = create_head(
            name, (Level(6, 16),), num_classes=5, hidden_dim=16, encoder_hidden_dim=16, decoder_layers=2, num_queries=9
        )
        batch, _ = make_batch(96, 96, torch.float32)
        maps = make_maps(96, 96, torch.float32, (Level(6, 16),))
        names = head.losses(head(maps, batch), batch).keys()
        empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
        batch = {**batch, "targets": empty}
        losses = head.losses(head(maps, batch), batch)
        assert losses.keys() == names
        total = torch.stack(list(losses.values())).sum()
        assert bool(total.isfinite())
        torch.autograd.backward(total)
        assert all(parameter.grad is not None for parameter in head.parameters())


def test_fewer_cells_than_queries_give_fewer_things(make_maps: Make) -> None:
    head = head_of(Level(4, 32), num_queries=40).eval()
    maps = make_maps(64, 64, torch.float32, (Level(4, 32),))
    assert head(maps, {"images": torch.zeros(2, 3, 64, 64)})["logits"].shape == (2, 6, 3)


@torch.no_grad()
def test_inference_is_one_graph_for_any_size_and_exports(make_maps: Make) -> None:
    head = head_of(Level(4, 8), Level(4, 16), Level(4, 32)).eval()
    batch: Any = {"images": torch.zeros(2, 3, 128, 96)}
    levels = (Level(4, 8), Level(4, 16), Level(4, 32))
    compiled = torch.compile(lambda maps: head(maps, batch)["boxes_cxcywh"], fullgraph=True, backend="eager")
    exported = torch.export.export(_Boxes(head), (make_maps(128, 96, torch.float32, levels),))
    for height, width in ((128, 96), (90, 75)):
        maps = make_maps(height, width, torch.float32, levels)
        expected = head(maps, batch)["boxes_cxcywh"]
        assert apart(compiled(maps), expected) < SINGLE[1]
        if (height, width) == (128, 96):
            assert apart(exported.module()(maps), expected) < SINGLE[1]


class _Boxes(torch.nn.Module):
    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: list[Tensor]) -> Tensor:
        boxes: Tensor = self.head(maps, {"images": torch.zeros(2, 3, 128, 96)})["boxes_cxcywh"]
        return boxes


@pytest.mark.parametrize("name", ["rtdetr", "dfine"])
def test_masks_are_learned_and_found(name: str, make_batch: Make, make_maps: Make) -> None:
    levels = (Level(4, 8), Level(4, 16))
    options: dict[str, Any] = {"hidden_dim": 16, "encoder_hidden_dim": 24, "encoder_heads": 2, "decoder_heads": 2}
    options |= {"decoder_layers": 2, "num_queries": 9, "max_detections": 7, "masks": True}
    head: Any = create_head(name, levels, num_classes=5, **options)
    batch, _ = make_batch(100, 90, torch.float32)
    for target in batch["targets"]:
        target["masks"] = torch.rand(len(target["labels"]), 100, 90) > 0.5
    maps = make_maps(100, 90, torch.float32, levels)
    losses = head.losses(head(maps, batch), batch)
    assert {"loss_mask", "loss_dice"} <= losses.keys()
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert all(parameter.grad is not None for parameter in head.parameters())
    head.eval()
    found = head.predict(head(maps, batch), {**batch, "sizes": [(100, 90), (40, 50)]})
    assert [each.masks.shape for each in found] == [(7, 100, 90), (7, 40, 50)]


@pytest.mark.parametrize("name", ["rtdetr", "dfine"])
def test_half_precision_trains_on_losses_in_single(name: str, make_batch: Make, make_maps: Make) -> None:
    head: Any = create_head(name, (Level(4, 16),), num_classes=5, hidden_dim=16, encoder_hidden_dim=16, num_queries=9)
    batch, _ = make_batch(96, 96, torch.float32)
    maps = make_maps(96, 96, torch.float32, (Level(4, 16),))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(maps, batch)
    losses = head.losses(outputs, batch)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    total = torch.stack(list(losses.values())).sum()
    assert bool(total.isfinite())
    torch.autograd.backward(total)
    assert all(bool(parameter.grad.isfinite().all()) for parameter in head.parameters())


@torch.no_grad()
def test_boxes_are_shares_of_the_padded_canvas(make_maps: Make) -> None:
    head = head_of(Level(4, 16)).eval()
    maps = make_maps(64, 128, torch.float32, (Level(4, 16),))
    batch: Any = {"images": torch.zeros(2, 3, 64, 128), "extents": torch.tensor([[64, 128], [32, 64]])}
    outputs = head(maps, batch)
    found = head.predict(outputs, {**batch, "sizes": [(64, 128), (64, 128)]})
    whole = head.predict(outputs, {"images": batch["images"], "sizes": [(64, 128), (64, 128)]})
    assert torch.equal(found[0].boxes, whole[0].boxes)
    corners = to_corners(outputs["boxes_cxcywh"]) * torch.tensor([256.0, 128.0, 256.0, 128.0])
    bounded = torch.minimum(corners.clamp(min=0), torch.tensor([128.0, 64.0, 128.0, 64.0]))[1]
    for box in found[1].boxes:
        assert float((bounded - box).abs().sum(-1).min()) < 1e-3

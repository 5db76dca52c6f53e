"""The dfine head against transformers' D-FINE, and what its distributions learn from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from heads.rtdetr.config import DistributionConfig
from heads.rtdetr.distribution import distances, moved
from heads.rtdetr.distribution_losses import _between, _shifts
from tests.precision import default_dtype
from vitdense.errors import UserError

SINGLE, DOUBLE = (torch.float32, 1e-5), (torch.float64, 1e-9)
Make = Callable[..., Any]
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "published": ({}, {}),
    "one width, other points": (
        {"d_model": 24, "decoder_n_points": [3, 6, 3], "depth_mult": 0.34, "hidden_expansion": 0.5},
        {"hidden_dim": 24, "decoder_points": (3, 6, 3), "depth_mult": 0.34, "hidden_expansion": 0.5},
    ),
    "other distributions": (
        {
            "max_num_bins": 16,
            "reg_scale": 8.0,
            "up": 0.25,
            "top_prob_values": 3,
            "lqe_hidden_dim": 16,
            "lqe_layers": 3,
            "decoder_method": "discrete",
            "decoder_n_points": 2,
        },
        {
            "distribution": {
                "bins": 16,
                "reg_scale": 8.0,
                "up": 0.25,
                "top_values": 3,
                "quality_dim": 16,
                "quality_layers": 3,
            },
            "decoder_method": "discrete",
            "decoder_points": 2,
        },
    ),
}


def apart(ours: Tensor, theirs: Tensor) -> float:
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
    theirs = make_reference("dfine", **given).double().eval()
    exact_scales(theirs)
    ours = make_ours("dfine", theirs, **ours_given).to(dtype)
    theirs.model.backbone.maps = make_maps(96, 160, torch.float64)
    expected = theirs(torch.zeros(2, 3, 96, 160, dtype=torch.float64))
    outputs = ours(make_maps(96, 160, dtype), {"images": torch.zeros(2, 3, 96, 160)})
    assert float(expected.logits.std()) > 0.1
    assert apart(outputs["logits"], expected.logits) < bound
    assert apart(outputs["boxes_cxcywh"], expected.pred_boxes) < bound


@torch.no_grad()
def test_any_size_is_taken_where_transformers_stops(
    make_reference: Make, make_ours: Make, make_maps: Make, cut_after_doubling: Make
) -> None:
    from transformers.models.d_fine import modeling_d_fine

    theirs = make_reference("dfine").double().eval()
    ours, maps = make_ours("dfine", theirs), make_maps(250, 333, torch.float64)
    theirs.model.backbone.maps = maps
    images = torch.zeros(2, 3, 250, 333, dtype=torch.float64)
    outputs = ours(maps, {"images": images})
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        theirs(images)
    cut_after_doubling(modeling_d_fine, [tuple(each.shape[-2:]) for each in reversed(maps[:-1])])
    expected = theirs(images)
    assert apart(outputs["logits"], expected.logits) < DOUBLE[1]
    assert apart(outputs["boxes_cxcywh"], expected.pred_boxes) < DOUBLE[1]


def by_our_names(losses: dict[str, Tensor], *, layers: int, shifted: bool) -> dict[str, Tensor]:
    """Theirs, where auxiliary losses count from what comes before any distribution; ours that stay 0 are left out."""
    found, encoder = {}, str(layers - 1 if shifted else layers)
    for name, value in losses.items():
        kind, _, index = name.partition("_aux_")
        if index == encoder:
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that transformers counts, as it pairs layers and distributions."""
    dtype, bound = precision
    if dtype == torch.float64:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # their weights of bins are single
    with default_dtype(dtype):  # their noise has the default type, ours that of the boxes
        theirs = make_reference("dfine", num_denoising=denoising).to(dtype).train()
        ours = make_ours("dfine", theirs, denoising={"queries": denoising}, distribution={"pairs": "shifted"})
        theirs.model.backbone.maps = make_maps(96, 160, dtype)
        batch, labels = make_batch(96, 160, dtype)
        torch.manual_seed(5)
        expected = theirs(torch.zeros(2, 3, 96, 160), labels=labels)
        torch.manual_seed(5)
        losses = ours.losses(ours(make_maps(96, 160, dtype), batch), batch)
    wanted = by_our_names(expected.loss_dict, layers=3, shifted=True)
    assert float(wanted.pop("loss_ddf_dn_2", torch.zeros(())).abs()) == 0  # the last layer from itself
    assert losses.keys() == wanted.keys()
    assert len(losses) == (30 if denoising else 16)
    for name, value in losses.items():
        assert apart(value, wanted[name].to(dtype)) < bound, name
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    expected.loss.backward()
    own, compared = dict(ours.named_parameters()), 0
    for name, parameter in theirs.model.named_parameters():
        mine = own.get(named_as_ours(name))
        if mine is not None and parameter.grad is not None:
            assert mine.grad is not None
            assert apart(mine.grad, parameter.grad) < 10 * bound, name
            compared += 1
    assert compared == len(own)


def test_layers_learn_with_their_own_distributions(
    make_reference: Make, make_ours: Make, make_maps: Make, make_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' loss of the same answers, those before any distribution taken away: then each layer is its own."""
    from transformers.loss import loss_d_fine

    theirs_of: Any = loss_d_fine.DFineForObjectDetectionLoss

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    theirs = make_reference("dfine").double().train()
    ours = make_ours("dfine", theirs)
    batch, labels = make_batch(96, 160, torch.float64)
    outputs = ours(make_maps(96, 160, torch.float64), batch)
    losses = ours.losses(outputs, batch)
    with default_dtype(torch.float64):  # which their roots of numbers have
        _, found, _ = theirs_of(
            outputs["logits"],
            labels,
            "cpu",
            outputs["boxes_cxcywh"],
            theirs.config,
            outputs["layer_logits"][1:].transpose(0, 1),
            outputs["layer_boxes"][1:].transpose(0, 1),
            enc_topk_logits=outputs["encoder_logits"],
            enc_topk_bboxes=outputs["encoder_boxes"],
            predicted_corners=outputs["layer_corners"].transpose(0, 1),
            initial_reference_points=outputs["layer_origins"][:, None].expand(-1, 3, -1, -1),
        )
    renamed = {}
    for name, value in found.items():
        kind, _, index = name.partition("_aux_")
        renamed[f"{kind}_encoder_0" if index == "2" else f"{kind}_{int(index) + 1}" if index else kind] = value
    assert losses.keys() - renamed.keys() == {"loss_vfl_0", "loss_bbox_0", "loss_giou_0", "loss_fgl"}
    assert renamed.keys() <= losses.keys()
    for name, value in renamed.items():
        assert apart(losses[name], value.double()) < DOUBLE[1], name


def test_a_distribution_at_the_target_gives_the_target() -> None:
    """A side's two weights are such that their mean lies where the target's side does."""
    config = DistributionConfig()
    values = distances(config, torch.zeros(1, dtype=torch.float64))
    assert len(values) == 33
    assert float(values[0]) == -float(values[-1]) == -4.0
    assert bool((values.diff() > 0).all())
    origin = torch.tensor([[0.5, 0.4, 0.3, 0.2]], dtype=torch.float64)
    wanted = torch.tensor([[0.3, 0.25, 0.6, 0.52]], dtype=torch.float64)
    left, share = _between(_shifts(origin, wanted, config.reg_scale), values)
    mean = values[left] * (1 - share) + values[left + 1] * share
    found = moved(origin, mean, config.reg_scale)
    corners = torch.cat([found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2], dim=1)
    assert apart(corners, wanted) < 1e-12


def test_odd_bins_are_refused(make_ours: Make) -> None:
    from heads import create_head
    from vitdense.contracts import Level

    with pytest.raises(UserError, match="bins is 31; allowed: even numbers from 4 on"):
        create_head("dfine", (Level(4, 16),), num_classes=2, distribution={"bins": 31})

"""Groups, rates and schedules."""

import pytest
import torch
from torch import nn

from vitdense.build import create_backbone
from vitdense.optim import OptimConfig, ScheduleConfig, build_optimizer, parameter_groups, set_rate


class Trained(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(8, 2, 1)


def test_warm_up_then_poly() -> None:
    schedule = ScheduleConfig(steps=110, warmup=10, warmup_factor=0.0)
    assert schedule.factor(0) == 0.0
    assert schedule.factor(5) == 0.5
    assert schedule.factor(10) == 1.0
    assert schedule.factor(60) == pytest.approx(0.5)
    assert schedule.factor(110) == 0.0


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    schedule = ScheduleConfig(steps=20, warmup=1500, warmup_factor=0.0)
    assert schedule.factor(19) == pytest.approx(19 / 1500)


def test_cosine_and_constant() -> None:
    cosine = ScheduleConfig(steps=100, decay="cosine", final_factor=0.1)
    assert cosine.factor(50) == pytest.approx(0.55)
    assert cosine.factor(100) == pytest.approx(0.1)
    assert ScheduleConfig(steps=100, decay="constant").factor(99) == 1.0


def test_steps_divide_the_rate_by_ten_at_each_milestone() -> None:
    schedule = ScheduleConfig(steps=100, warmup=2, warmup_factor=0.5, decay="steps", milestones=(50, 80))
    rates = [schedule.factor(step) for step in (0, 1, 2, 49, 50, 79, 80, 99)]
    assert rates == pytest.approx([0.5, 0.75, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(("name", "depth"), [("vit_nano_patch8", 4), ("swin_nano", 8)])
def test_layer_decay_reaches_every_layer(name: str, depth: int) -> None:
    backbone = create_backbone(name)
    assert backbone.num_layers == depth
    groups = parameter_groups(Trained(backbone), backbone, OptimConfig(layer_decay=0.5))
    scales = {group["lr_scale"] for group in groups}
    assert scales == {0.5 ** (depth + 1 - layer) for layer in range(depth + 1)} | {1.0}


def test_norms_biases_and_position_tables_have_no_decay() -> None:
    backbone = create_backbone("swin_nano")
    model = Trained(backbone)
    groups = parameter_groups(model, backbone, OptimConfig(weight_decay=0.01))
    free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = parameter.ndim == 1 or "relative_position_bias_table" in name
        assert (id(parameter) in free) == expected, name


def test_every_trainable_parameter_is_in_one_group() -> None:
    backbone = create_backbone("swin_nano", frozen_stages=2)
    model = Trained(backbone)
    grouped = [id(p) for group in parameter_groups(model, backbone, OptimConfig()) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len(grouped) < len(list(model.parameters()))


def test_the_rate_is_set_for_each_group() -> None:
    backbone = create_backbone("vit_nano_patch8")
    optim = OptimConfig(lr=1.0, layer_decay=0.5, backbone_lr_scale=0.1)
    optimizer = build_optimizer(parameter_groups(Trained(backbone), backbone, optim), optim)
    rate = set_rate(optimizer, optim, ScheduleConfig(steps=10, decay="constant"), 5)
    assert rate == 1.0
    assert {group["lr"] for group in optimizer.param_groups} == {1.0} | {0.1 * 0.5**n for n in range(1, 6)}


def test_sgd_has_momentum() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer([{"params": [weight], "lr_scale": 1.0, "weight_decay": 0.0}], OptimConfig(name="sgd"))
    assert optimizer.defaults["momentum"] == 0.9

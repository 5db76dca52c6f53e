"""Parameter groups (layer-wise rates, no decay), the optimizer, and the learning rate as a function of the step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from vitdense.contracts import Backbone, Head
from vitdense.registry import Config


class OptimConfig(Config):
    """Options of the optimizer. `layer_decay` multiplies the rate once for each layer below the head (1.0: off)."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.01
    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    backbone_lr_scale: PositiveFloat = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)


class ScheduleConfig(Config):
    """Options of the learning rate: linear warm-up from `lr * warmup_factor`, then down to `lr * final_factor`.

    `decay: steps` divides it by 10 at each of `milestones` instead.
    """

    steps: PositiveInt
    warmup: NonNegativeInt = 0
    warmup_factor: float = Field(default=1e-6, ge=0.0, le=1.0)
    decay: Literal["poly", "cosine", "constant", "steps"] = "poly"
    milestones: tuple[PositiveInt, ...] = ()
    power: PositiveFloat = 1.0
    final_factor: float = Field(default=0.0, ge=0.0, le=1.0)

    def factor(self, step: int) -> float:
        """What the base rate is multiplied with in step `step` (from 0); it has no state, so nothing is saved."""
        if step < self.warmup:
            return self.warmup_factor + (1.0 - self.warmup_factor) * step / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.decay == "constant":
            return 1.0
        if self.decay == "steps":
            return float(0.1 ** sum(step >= milestone for milestone in self.milestones))
        left = (1.0 - progress) ** self.power if self.decay == "poly" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final_factor + (1.0 - self.final_factor) * left


def parameter_groups(model: nn.Module, backbone: Backbone, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups of trainable parameters by (rate scale, decay); norms, biases and what `no_decay` of backbone and
    head names get no decay."""
    prefix = next(name for name, module in model.named_modules() if module is backbone) + "."
    parts = {name: module for name, module in model.named_modules() if isinstance(module, Backbone | Head)}
    kept = {f"{name}.{own}" for name, module in parts.items() for own in module.no_decay()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = name.removeprefix(prefix) if name.startswith(prefix) else None
        decays = parameter.ndim > 1 and name not in kept
        scale = 1.0 if own is None else config.backbone_lr_scale * _depth_scale(backbone, own, config.layer_decay)
        groups.setdefault((scale, decays), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, "weight_decay": config.weight_decay if decays else 0.0}
        for (scale, decays), parameters in groups.items()
    ]


def _depth_scale(backbone: Backbone, parameter: str, layer_decay: float) -> float:
    if layer_decay == 1.0:
        return 1.0
    return float(layer_decay ** (backbone.num_layers + 1 - backbone.layer_of(parameter)))


def build_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over these groups; AdamW in its fused form, one pass over the memory."""
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def set_rate(optimizer: torch.optim.Optimizer, optim: OptimConfig, schedule: ScheduleConfig, step: int) -> float:
    """Set every group's rate for step `step` (from 0) and return the head's."""
    rate = optim.lr * schedule.factor(step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate


def describe(groups: Sequence[Mapping[str, Any]]) -> str:
    """One line: how many parameters in how many groups."""
    count = sum(parameter.numel() for group in groups for parameter in group["params"])
    return f"{count / 1e6:.2f} M trainable parameters in {len(groups)} groups"

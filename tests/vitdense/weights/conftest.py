"""What the parity tests share: weights that carry a signal, and the road from a peer's state to our backbone."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.contracts import BACKBONES, Backbone
from vitdense.weights import load_weights, read_weights

Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]


def enlivened(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.12 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def filled(name: str, source: Any, options: dict[str, Any]) -> Backbone:
    """The road that create_backbone takes: the options of the weights below what is given."""
    config = BACKBONES.create(name, options)
    weights = read_weights(source, config)
    config = config.with_defaults(weights.options)
    backbone = config.build()
    backbone.config = config
    backbone.load_report = load_weights(backbone, weights)
    return backbone.eval()


@pytest.fixture
def enliven() -> Enliven:
    return enlivened


@pytest.fixture
def fill() -> Fill:
    return filled


@pytest.fixture
def by_timm(tmp_path: Path) -> Callable[..., Path]:
    """A folder as timm publishes it: of bare tensors, whose names are ours too, nobody knows whose network it was."""

    def publish(model: Any, state: dict[str, Tensor] | None = None) -> Path:
        config = {"architecture": model.pretrained_cfg["architecture"], "pretrained_cfg": {}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(model.state_dict() if state is None else state, tmp_path / "model.safetensors")
        return tmp_path

    return publish


@pytest.fixture
def picture() -> Callable[..., Tensor]:
    def draw(height: int, width: int, batch: int = 2) -> Tensor:
        return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))

    return draw


@pytest.fixture
def padded() -> Callable[[Tensor, int], Tensor]:
    """A picture with zeros at the right and bottom, for references that floor sizes or refuse them."""

    def pad(images: Tensor, patch: int) -> Tensor:
        height, width = images.shape[2:]
        return F.pad(images, (0, -width % patch, 0, -height % patch))

    return pad


@pytest.fixture
def apart() -> Callable[[Sequence[Tensor], Sequence[Tensor]], float]:
    """The largest difference of two lists of tensors, in units of the reference's mean size where that is above one."""

    def largest(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
        assert [a.shape for a in ours] == [b.shape for b in theirs]
        assert [a.dtype for a in ours] == [b.dtype for b in theirs]
        assert min(float(b.abs().mean()) for b in theirs) > 0.1, "the reference carries no signal"
        return max(float((a - b).abs().max() / b.abs().mean().clamp(min=1)) for a, b in zip(ours, theirs, strict=True))

    return largest

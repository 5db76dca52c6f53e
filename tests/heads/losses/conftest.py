"""What tests of losses share: logits and masks at a size that doesn't divide."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from heads.losses import LOSSES, Pixels

Case = Callable[[torch.dtype], tuple[Tensor, Tensor]]


@pytest.fixture
def case() -> Case:
    """Logits (2, 5, 13, 17) and masks (2, 50, 67) with pixels without a label and a class that is absent, 4."""

    def make(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        logits = (3 * torch.randn(2, 5, 13, 17, dtype=dtype)).requires_grad_()
        areas = F.interpolate(torch.randint(-1, 4, (2, 1, 7, 9)).float(), (50, 67), mode="nearest")
        return logits, areas[:, 0].long()

    return make


@pytest.fixture
def loss() -> Callable[..., Tensor]:
    """A loss by name and options, of logits and masks."""

    def compute(name: str, logits: Tensor, masks: Tensor, **options: object) -> Tensor:
        return LOSSES.create(name, options).loss(Pixels(logits, masks))

    return compute


@pytest.fixture
def upsampled() -> Callable[[Tensor], Tensor]:
    """Logits of `case` at the masks' size."""

    def resize(logits: Tensor) -> Tensor:
        return F.interpolate(logits, (50, 67), mode="bilinear")

    return resize

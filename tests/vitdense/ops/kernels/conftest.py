"""Triton kernels run on a GPU or in its interpreter, which TRITON_INTERPRET=1 chooses before triton is imported."""

import os

import pytest
import torch

from vitdense.ops import deformable, upsampled_argmax, upsampled_cross_entropy
from vitdense.ops.kernels import SWITCH

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]  # see test_kernels.py above


@pytest.fixture
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU nothing but this would choose them."""
    monkeypatch.setenv(SWITCH, "1")
    if INTERPRETED:
        for module in (deformable, upsampled_argmax, upsampled_cross_entropy):
            monkeypatch.setattr(module, "runs_as_kernel", lambda tensor: True)

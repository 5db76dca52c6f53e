"""Small rasters in files, and a small model of four channels whose weights carry a signal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import vitdense
from vitdense.benchmarking.suite.maps import enliven
from vitdense.contracts import HEADS
from vitdense.inference import InferenceConfig
from vitdense.model import Model

MEAN, STD = (0.4, 0.5, 0.45, 0.3), (0.2, 0.25, 0.22, 0.3)


def make_model(channels: int = 4, classes: int = 5, **options: Any) -> Model:
    """A ViT of one block under a linear head."""
    torch.manual_seed(1)
    small: Any = {"depth": 1, "embed_dim": 16, "num_heads": 2, "image_size": 32}
    backbone = vitdense.create_backbone(
        "vit_nano_patch8", in_channels=channels, mean=MEAN[:channels], std=STD[:channels], **small
    )
    head = HEADS.create("linear", {"num_classes": classes}).build(backbone.levels)
    inference = InferenceConfig.model_validate({"window": 32, "window_batch": 3, **options})
    model = Model(backbone, head, inference=inference)
    enliven(model)
    return model.eval()


@pytest.fixture(scope="session")
def model() -> Model:
    return make_model()


@pytest.fixture
def scene() -> NDArray[np.uint8]:
    """(87, 130, 4): smooth, so that classes cover regions."""
    coarse = torch.rand(1, 4, 12, 17, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(coarse, (87, 130), mode="bicubic").clamp(0, 1)[0]
    return (smooth * 255).to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes an array, and gives the file."""

    def write(values: NDArray[Any], name: str = "scene") -> Path:
        np.save(tmp_path / f"{name}.npy", values)
        return tmp_path / f"{name}.npy"

    return write


@pytest.fixture
def make() -> Callable[..., Model]:
    return make_model

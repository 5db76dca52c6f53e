"""transformers' Depth Anything, relative and metric, loaded whole from what save_pretrained wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

import vitdense
from vitdense.errors import WeightsError

SINGLE = 1e-5
# 518 and 252 are whole patches of 14, 19 and 25 of 333: odd, so that levels are not half as large as the next.
SIZES = [(518, 518), (250, 333)]
Enliven = Callable[[nn.Module], nn.Module]
Apart = Callable[[list[Tensor], list[Tensor]], float]
CONFIGS: dict[str, dict[str, Any]] = {
    "relative": {"depth_estimation_type": "relative", "max_depth": 1},
    "metric": {"depth_estimation_type": "metric", "max_depth": 80, "head_hidden_size": 24},
}


def depth_anything(name: str, folder: Path, enliven: Enliven) -> Any:
    small: Any = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 70, "mlp_ratio": 2}
    stages: Any = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "reshape_hidden_states": False}
    backbone = Dinov2Config(**small, **stages)
    sizes: Any = {"reassemble_hidden_size": 32, "neck_hidden_sizes": [6, 8, 10, 12], "fusion_hidden_size": 16}
    config = DepthAnythingConfig(backbone_config=backbone, **sizes, **CONFIGS[name])
    theirs: Any = enliven(DepthAnythingForDepthEstimation(config))
    if name == "relative":
        theirs.head.conv3.bias.data.fill_(5.0)
    theirs.save_pretrained(folder)
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_depth_equals_transformers(name: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs = depth_anything(name, tmp_path, enliven)
    ours = vitdense.load_model(tmp_path)
    for height, width in SIZES:
        images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(2))
        padded = F.pad(ours.normalise(images), (0, -width % 14, 0, -height % 14))
        expected = theirs(padded).predicted_depth[:, None, :height, :width]
        assert apart([ours({"images": images})["depth"]], [expected]) < SINGLE


def test_metres_are_kept_within_their_range(enliven: Enliven, tmp_path: Path) -> None:
    import numpy as np

    depth_anything("metric", tmp_path, enliven)
    model: Any = vitdense.load_model(tmp_path)
    assert (model.head.min_depth, model.head.max_depth) == (0.0, 80.0)
    (depth,) = model.predict([np.zeros((75, 98, 3), dtype=np.uint8)])
    assert depth.shape == (75, 98)
    assert 0 < depth.min() <= depth.max() < 80


def test_another_backbone_is_refused(enliven: Enliven, tmp_path: Path) -> None:
    depth_anything("metric", tmp_path, enliven)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone_config"]["model_type"] = "beit"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="is a Depth Anything on beit; known here: on dinov2"):
        vitdense.load_model(tmp_path)

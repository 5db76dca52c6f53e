"""transformers' classifiers of clips, loaded whole from what save_pretrained wrote: the reference's logits at 1e-5."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VivitConfig,
    VivitForVideoClassification,
)

import vitdense
from vitdense.contracts import HEADS
from vitdense.errors import WeightsError

pytestmark = pytest.mark.skipif("classify" not in HEADS.names(), reason="no head of this name is registered")

SINGLE = 1e-5
Enliven = Callable[[nn.Module], nn.Module]
Apart = Callable[[list[Tensor], list[Tensor]], float]
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 80,
    "image_size": 32,
    "num_frames": 4,
    "num_labels": 7,
    "id2label": {i: f"verb {i}" for i in range(7)},
}
MODELS: dict[str, Callable[[], Any]] = {
    "timesformer": lambda: TimesformerForVideoClassification(TimesformerConfig(**SMALL, patch_size=8)),
    "joint": lambda: TimesformerForVideoClassification(
        TimesformerConfig(**SMALL, patch_size=8, attention_type="joint_space_time", num_channels=4)
    ),
    "vivit": lambda: VivitForVideoClassification(VivitConfig(**SMALL, tubelet_size=[2, 8, 8])),
    "videomae": lambda: VideoMAEForVideoClassification(VideoMAEConfig(**SMALL, patch_size=8, hidden_act="gelu_new")),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(name: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs: Any = enliven(MODELS[name]())
    theirs.save_pretrained(tmp_path)
    ours = vitdense.load_model(tmp_path)
    channels = theirs.config.num_channels
    clips = torch.rand(2, channels, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    expected = theirs(ours.normalise(clips).transpose(1, 2)).logits
    assert apart([ours({"images": clips})["logits"]], [expected]) < SINGLE
    assert ours.classes == tuple(f"verb {i}" for i in range(7))


def test_a_backbone_alone_is_sent_to_create_backbone(tmp_path: Path) -> None:
    VideoMAEModel(VideoMAEConfig(**SMALL, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r'without a classifier.*create_backbone\("videomae_base_patch16"'):
        vitdense.load_model(tmp_path)


def test_a_classifier_of_the_first_patch_is_refused(tmp_path: Path) -> None:
    """Without a mean it reads one corner's patch, which no vector of ours is."""
    config = VideoMAEConfig(**SMALL, patch_size=8, use_mean_pooling=False)
    VideoMAEForVideoClassification(config).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="use_mean_pooling False"):
        vitdense.load_model(tmp_path)

"""A backbone is taken out of a whole model's checkpoint: segmentation and depth models, with what is left reported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from vitdense.contracts import Backbone

SINGLE = 1e-5
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)}
VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2, "norm_maps": False}


def upernet() -> Any:
    backbone = SwinConfig(  # type: ignore[call-arg]  # out_features is a property, which their stubs leave out
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    options: dict[str, Any] = {"hidden_size": 8, "auxiliary_channels": 8, "num_labels": 3}
    config = UperNetConfig(backbone_config=backbone, **options)
    return UperNetForSemanticSegmentation(config)


def dpt() -> Any:
    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    return DPTForDepthEstimation(config)


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert max(float(b.abs().mean()) for b in theirs) > 0.3, "the reference carries no signal"
    return max(float((a - b).abs().max() / b.abs().mean().clamp(min=1)) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("from_files", [False, True], ids=["in memory", "on disk"])
def test_a_swin_out_of_transformers_upernet(
    from_files: bool, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(upernet())
    theirs.save_pretrained(tmp_path)
    ours = fill("swin_tiny", tmp_path if from_files else theirs.state_dict(), SWIN)
    images = picture(250, 333)
    assert apart(ours(images), list(theirs.backbone(images).feature_maps)) < SINGLE
    assert ours.load_report is not None
    assert any(key.startswith("decode_head.") for key in ours.load_report.left_out)
    assert not ours.load_report.fresh


@torch.no_grad()
@pytest.mark.parametrize("from_files", [False, True], ids=["in memory", "on disk"])
def test_a_vit_out_of_transformers_dpt(
    from_files: bool, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(dpt())
    theirs.save_pretrained(tmp_path)
    ours = fill("vit_small_patch16", tmp_path if from_files else theirs.state_dict(), VIT)
    for height, width in ((64, 64), (64, 96)):
        images = picture(height, width)
        given = theirs.dpt(images, output_hidden_states=True).hidden_states
        maps = [state[:, 1:].mT.unflatten(2, (height // 16, width // 16)) for state in given[1:]]
        assert apart(ours(images), maps) < SINGLE
    assert ours.load_report is not None
    assert any(key.startswith("neck.") for key in ours.load_report.left_out)


@torch.no_grad()
def test_a_vit_out_of_midas_names(enliven: Enliven, fill: Fill, picture: Picture) -> None:
    """Depth models of MiDaS and DPT keep timm's ViT below `pretrained.model`, beside their scratch layers."""
    first = fill("vit_small_patch16", enliven(timm_vit()).state_dict(), VIT)
    whole = {f"pretrained.model.{key}": tensor for key, tensor in first.state_dict().items()}
    whole |= {
        "pretrained.act_postprocess1.3.weight": torch.ones(2),
        "scratch.refinenet1.out_conv.weight": torch.ones(2),
    }
    ours = fill("vit_small_patch16", whole, VIT)
    images = picture(64, 96)
    torch.testing.assert_close(ours(images), first(images), atol=0, rtol=0)
    assert ours.load_report is not None
    assert {"scratch.refinenet1.out_conv.weight", "pretrained.act_postprocess1.3.weight"} <= set(
        ours.load_report.left_out
    )


def timm_vit() -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(
        "vit_small_patch16_224", img_size=64, embed_dim=32, depth=4, num_heads=2, num_classes=0
    )
    return model

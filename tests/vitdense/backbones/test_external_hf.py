"""transformers' networks behind our contract: true levels at any size, their own numbers and weights, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

import vitdense
from vitdense.backbones.alignment import measure_alignment
from vitdense.contracts import Backbone
from vitdense.errors import UserError, WeightsError

PLAIN: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
STAGES: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": PLAIN,
    "vit_mae": PLAIN,
    "dinov2_with_registers": PLAIN,
    "dinov3_vit": PLAIN,
    "beit": PLAIN,
    "clip_vision_model": PLAIN,
    "siglip_vision_model": PLAIN,
    "swin": STAGES,
    "swinv2": STAGES,
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "segformer": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
}


def build(name: str, **options: Any) -> Backbone:
    torch.manual_seed(0)
    return vitdense.create_backbone(f"hf/{name}", config=FAMILIES[name], **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_levels_are_true_at_any_size_and_gradients_finite(name: str) -> None:
    backbone = build(name)
    for size in ((224, 224), (250, 333), (64, 96)):
        images = torch.randn(1, 3, *size)
        maps = backbone(images)
        promised = [(1, each.channels, *(-(-side // each.stride) for side in size)) for each in backbone.levels]
        assert [tuple(each.shape) for each in maps] == promised
    loss = torch.stack([each.square().mean() for each in maps]).sum()
    # MAE's positions are fixed.
    wanted = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    assert any(each is not None for each in found)
    assert all(each is None or each.isfinite().all() for each in found)
    with torch.no_grad():
        tokens = backbone.eval().tokens(images)
        assert tokens.patches.shape[1] == tokens.grid[0] * tokens.grid[1]
        assert backbone.embed(images).shape == (1, backbone.embed_dim)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cell_answers_to_its_own_pixels(name: str) -> None:
    verdicts = [each.verdict for each in measure_alignment(build(name).eval(), (250, 333))]
    assert verdicts[0] == "yes"
    assert "no" not in verdicts


@torch.no_grad()
@pytest.mark.parametrize("from_files", [False, True], ids=["in memory", "on disk"])
def test_maps_are_transformers_own_from_its_weights(from_files: bool, tmp_path: Path) -> None:
    theirs: Any = Dinov2Model(Dinov2Config(**PLAIN))
    theirs.eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)
    source: Any = tmp_path if from_files else theirs.state_dict()
    ours = vitdense.create_backbone("hf/dinov2", config=PLAIN, weights=source, norm_maps=False).eval()
    images = torch.randn(2, 3, 112, 84)
    states = theirs(images, output_hidden_states=True).hidden_states[1:]
    for each, state in zip(ours(images), states, strict=True):
        torch.testing.assert_close(each, state[:, 1:].mT.unflatten(2, (8, 6)), atol=1e-5, rtol=0)
    assert ours.load_report is not None
    assert not ours.load_report.fresh


@torch.no_grad()
def test_a_folder_says_its_own_config(tmp_path: Path) -> None:
    theirs: Any = ViTModel(ViTConfig(**PLAIN), add_pooling_layer=False)
    theirs.eval()
    theirs.save_pretrained(tmp_path)
    ours = vitdense.create_backbone(f"hf/{tmp_path}", weights="default").eval()
    images = torch.randn(1, 3, 224, 224)
    expected = theirs(images).last_hidden_state
    torch.testing.assert_close(ours.tokens(images).patches, expected[:, 1:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_picture_tower_of_a_whole_clip_loads(tmp_path: Path) -> None:
    small = {**PLAIN, "intermediate_size": 64}
    theirs: Any = CLIPModel(CLIPConfig(text_config=small, vision_config=small))
    theirs.eval()
    theirs.save_pretrained(tmp_path)
    ours = vitdense.create_backbone("hf/clip_vision_model", config=small, weights=tmp_path).eval()
    images = torch.randn(1, 3, 224, 224)
    expected = theirs.vision_model(images).pooler_output
    torch.testing.assert_close(ours.embed(images), expected, atol=1e-5, rtol=0)
    assert ours.load_report is not None
    assert any(key.startswith("text_model.") for key in ours.load_report.left_out)


@pytest.mark.parametrize("spoil", ["missing", "shape"])
def test_weights_that_dont_fit_are_refused_by_key(spoil: str) -> None:
    state = Dinov2Model(Dinov2Config(**PLAIN)).state_dict()
    key = next(key for key in state if key.endswith("norm1.weight"))
    if spoil == "missing":
        del state[key]
    else:
        state[key] = torch.ones(7)
    with pytest.raises(WeightsError, match=r"norm1\.weight"):
        vitdense.create_backbone("hf/dinov2", config=PLAIN, weights=state)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dinov22", {}, "did you mean|no model"),
        ("bert", {}, "pictures|maps|spatial"),
        ("dinov2", {"config": {"hiden_size": 32}}, "did you mean hidden_size"),
        ("dinov2", {"config": PLAIN, "frozen_stages": 2}, "frozen_stages must be 0"),
        ("facebook/dinov2-base", {}, "hf download"),
    ],
)
def test_refusals_say_why(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vitdense.create_backbone(f"hf/{name}", **options)


def test_recomputing_keeps_less_and_other_channels_are_taken() -> None:
    backbone = build("vit", grad_checkpointing=True, in_channels=5)
    assert isinstance(backbone, nn.Module)
    assert len(backbone(torch.randn(1, 5, 64, 64))) == 4

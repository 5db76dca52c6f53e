"""transformers' DPT for segmentation and depth, plain and hybrid, loaded whole from what save_pretrained wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BeitConfig, Dinov2Config, DPTConfig, DPTForDepthEstimation, DPTForSemanticSegmentation

import vitdense
from vitdense.errors import CheckpointError, UserError, WeightsError

SINGLE, DOUBLE = 1e-5, 1e-9
# Squares: transformers takes the root of the number of patches. They are padded to 32 pixels: at others its
# fusion stretches one level over the next.
STRIDE = 32
Enliven = Callable[[nn.Module], nn.Module]
Apart = Callable[[list[Tensor], list[Tensor]], float]
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "backbone_out_indices": [0, 1, 2, 3],
    "fusion_hidden_size": 16,
}
HYBRID: dict[str, Any] = {
    "is_hybrid": True,
    "neck_hidden_sizes": [128, 256, 8, 12],
    "reassemble_factors": [1, 1, 1, 0.5],
    "backbone_featmap_shape": [1, 512, 4, 4],
    "backbone_config": {
        "model_type": "bit",
        "layer_type": "bottleneck",
        "global_padding": "same",
        "embedding_dynamic_padding": True,
        "depths": [1, 2, 1],
        "embedding_size": 32,
        "hidden_sizes": [128, 256, 512],
        "out_features": ["stage1", "stage2", "stage3"],
    },
}
NECK = {"neck_hidden_sizes": [6, 8, 10, 12]}
CONFIGS: dict[str, dict[str, Any]] = {
    "ignore": {**NECK, "readout_type": "ignore", "num_labels": 4, "use_auxiliary_head": False},
    "add, batch norm": {**NECK, "readout_type": "add", "use_batch_norm_in_fusion_residual": True, "num_labels": 11},
    "project": {**NECK, "readout_type": "project", "qkv_bias": False},
    "project, other depth": {
        **NECK,
        "num_hidden_layers": 6,
        "backbone_out_indices": [1, 2, 4, 5],
        "use_batch_norm_in_fusion_residual": True,
        "use_bias_in_fusion_residual": True,
        "layer_norm_eps": 1e-6,
    },
    "hybrid": {**HYBRID, "num_labels": 5},
    "hybrid, batch norm": {**HYBRID, "use_batch_norm_in_fusion_residual": True, "use_auxiliary_head": False},
    "hybrid, early blocks": {**HYBRID, "backbone_out_indices": [0, 0, 1, 2]},
}


def dpt(kind: Any, name: str, folder: Path, enliven: Enliven) -> Any:
    """With a last bias that lets most of the depth through the last ReLU, and running statistics."""
    theirs: Any = enliven(kind(DPTConfig(**{**VIT, **CONFIGS[name]})))
    if kind is DPTForDepthEstimation:
        theirs.head.head[4].bias.data.fill_(5.0)
    generator = torch.Generator().manual_seed(5)
    for key, buffer in theirs.named_buffers():
        if key.endswith("running_mean"):
            buffer.copy_(0.12 * torch.randn(buffer.shape, generator=generator))
        elif key.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    theirs.save_pretrained(folder)
    if theirs.config.is_hybrid:
        embed = theirs.dpt.embeddings.forward
        theirs.dpt.embeddings.forward = lambda images: embed(images, interpolate_pos_encoding=True)
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("kind", [DPTForSemanticSegmentation, DPTForDepthEstimation])
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_equal_transformers(name: str, kind: Any, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs = dpt(kind, name, tmp_path, enliven)
    ours = vitdense.load_model(tmp_path)
    for side, dtype, bound in (
        (512, torch.float32, SINGLE),
        (250, torch.float32, SINGLE),
        (250, torch.float64, DOUBLE),
    ):
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(2), dtype=dtype)
        outputs = theirs(F.pad(ours.normalise(images), (0, -side % STRIDE, 0, -side % STRIDE)))
        depth = kind is DPTForDepthEstimation
        expected = outputs.predicted_depth[:, None] if depth else outputs.logits
        given = ours({"images": images})["depth" if depth else "logits"]
        assert given.shape[2:] == (side, side)
        assert apart([given], [expected[..., :side, :side]]) < bound


@torch.no_grad()
@pytest.mark.parametrize("readout", ["ignore", "add", "project"])
def test_depth_on_beit_equals_transformers(readout: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    """As MiDaS 3.1; here transformers takes pictures that are no squares."""
    small: Any = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    stages: Any = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "reshape_hidden_states": False}
    backbone = BeitConfig(**small, **stages, image_size=64, use_relative_position_bias=True)
    neck: Any = {**NECK, "fusion_hidden_size": 16, "readout_type": readout}
    theirs: Any = enliven(DPTForDepthEstimation(DPTConfig(backbone_config=backbone, **neck)))
    theirs.head.head[4].bias.data.fill_(5.0)
    theirs.save_pretrained(tmp_path)
    ours = vitdense.load_model(tmp_path)
    for height, width in ((512, 512), (250, 333)):
        images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(2))
        padded = F.pad(ours.normalise(images), (0, -width % STRIDE, 0, -height % STRIDE))
        expected = theirs(padded).predicted_depth[:, None, :height, :width]
        assert apart([ours({"images": images})["depth"]], [expected]) < SINGLE


@torch.no_grad()
def test_the_auxiliary_head_comes_along(enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs = dpt(DPTForSemanticSegmentation, "add, batch norm", tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    fused = torch.randn(1, 16, 20, 30)
    assert apart([ours.head.auxiliary_head(fused)], [theirs.auxiliary_head(fused)]) < SINGLE


def test_depth_is_predicted_as_published_at_the_pictures_size(enliven: Enliven, tmp_path: Path) -> None:
    """Relative depth has no range."""
    import numpy as np

    theirs = dpt(DPTForDepthEstimation, "ignore", tmp_path, enliven)
    theirs.head.head[4].bias.data.fill_(500.0)
    theirs.save_pretrained(tmp_path)
    (depth,) = vitdense.load_model(tmp_path).predict([np.zeros((75, 98, 3), dtype=np.uint8)])
    assert depth.shape == (75, 98)
    assert 400 < depth.min() <= depth.max() < 600


def test_pixels_are_normed_with_halves_or_as_the_files_say(enliven: Enliven, tmp_path: Path) -> None:
    dpt(DPTForDepthEstimation, "ignore", tmp_path, enliven)
    assert vitdense.load_model(tmp_path).backbone.mean == (0.5, 0.5, 0.5)
    facts = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    model = vitdense.load_model(tmp_path)
    assert (model.backbone.mean, model.backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_loaded_model_can_be_trained(enliven: Enliven, tmp_path: Path) -> None:
    dpt(DPTForSemanticSegmentation, "project", tmp_path, enliven)
    model = vitdense.load_model(tmp_path).train()
    batch: Any = {"images": torch.rand(2, 3, 50, 67), "masks": torch.randint(0, 2, (2, 50, 67))}
    losses = model.head.losses(model(batch), batch)
    assert set(losses) == {"loss_ce", "loss_aux"}
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_whole_model_is_one_exported_graph_of_any_size(enliven: Enliven, tmp_path: Path) -> None:
    dpt(DPTForDepthEstimation, "project", tmp_path, enliven)
    model = vitdense.load_model(tmp_path)
    sides = {2: torch.export.Dim("height", min=64, max=400), 3: torch.export.Dim("width", min=64, max=400)}
    program = torch.export.export(model, ({"images": torch.rand(1, 3, 100, 130)},), dynamic_shapes=({"images": sides},))
    with torch.no_grad():
        for size in ((100, 130), (75, 98), (64, 96)):
            images = torch.rand(1, 3, *size)
            torch.testing.assert_close(
                program.module()({"images": images})["depth"], model({"images": images})["depth"]
            )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_in_index": 2}, "head_in_index 2; known here: -1"),
        ({"reassemble_factors": [2, 1, 0.5, 0.25]}, r"reassemble_factors \(2, 1, 0.5, 0.25\); known for its patches"),
        ({"fusion_hidden_size": 24}, "doesn't fit dpt_depth"),
        ({"neck_hidden_sizes": [8, 8, 8, 8]}, "doesn't fit reassemble"),
        ({"hidden_act": "relu"}, "relu"),
    ],
    ids=str,
)
def test_what_is_not_built_here_is_refused(
    change: dict[str, Any], message: str, enliven: Enliven, tmp_path: Path
) -> None:
    dpt(DPTForDepthEstimation, "project", tmp_path, enliven)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        vitdense.load_model(tmp_path)


def test_a_dpt_on_another_backbone_is_refused(tmp_path: Path) -> None:
    small: Any = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "out_indices": [1, 2, 3, 4]}
    backbone = Dinov2Config(**small, reshape_hidden_states=False)
    config: Any = {**VIT, **NECK, "backbone_config": backbone}
    DPTForDepthEstimation(DPTConfig(**config)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="is a DPT on dinov2; known here: on a ViT, the hybrid, and beit"):
        vitdense.load_model(tmp_path)


def test_a_name_of_the_hub_goes_the_same_way(enliven: Enliven, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dpt(DPTForDepthEstimation, "ignore", tmp_path, enliven)
    asked = []

    def download(repo: str, file: str) -> str:
        from huggingface_hub.errors import EntryNotFoundError

        asked.append(repo)
        if not (tmp_path / file).is_file():
            raise EntryNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = vitdense.load_model("hf/Intel/dpt-large")
    assert set(asked) == {"Intel/dpt-large"}
    assert model.head.dense == "depth"


def test_a_name_that_cannot_be_fetched_says_how_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="hf download nobody/nothing"):
        vitdense.load_model("hf/nobody/nothing")


def test_a_folder_of_neither_kind_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("empty")
    with pytest.raises(
        CheckpointError, match=r"no model in .*: it has neither checkpoints of a run .* nor a config\.json"
    ):
        vitdense.load_model(tmp_path)


def test_options_of_a_recipe_are_refused(enliven: Enliven, tmp_path: Path) -> None:
    dpt(DPTForDepthEstimation, "ignore", tmp_path, enliven)
    with pytest.raises(UserError, match=r"a published model has no recipe: head can't be set, only inference\.\*"):
        vitdense.load_model(tmp_path, ["head.dropout=0.2"])
    with pytest.raises(UserError, match=r"inference\.mode: input should be 'whole' or 'sliding'"):
        vitdense.load_model(tmp_path, ["inference.mode=slidin"])

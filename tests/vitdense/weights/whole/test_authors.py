"""State dicts of mmseg's UperNet and of DPT's authors give the outputs of transformers' models of the same weights."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    DPTConfig,
    DPTForDepthEstimation,
    DPTForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import vitdense
from vitdense.errors import WeightsError
from vitdense.weights.rows import translate
from vitdense.weights.swin import MMSEG

SINGLE = 1e-5
Enliven = Callable[[nn.Module], nn.Module]
Apart = Callable[[list[Tensor], list[Tensor]], float]
State = dict[str, Tensor]
FUSION = {"projection": "out_conv", "convolution": "conv", "batch_norm": "bn", "residual_layer": "resConfUnit"}
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


def dpt(kind: Any, folder: Path, enliven: Enliven, **options: Any) -> Any:
    """Heads have 64 channels in all that the authors published."""
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "image_size": 64,
        "backbone_out_indices": [0, 1, 2, 3],
        "fusion_hidden_size": 16,
        "neck_hidden_sizes": [6, 8, 10, 12],
        "layer_norm_eps": 1e-6,
    }
    theirs: Any = enliven(kind(DPTConfig(**{**sizes, **options})))
    if kind is DPTForDepthEstimation:
        theirs.head.head[4].bias.data.fill_(5.0)
    theirs.save_pretrained(folder)
    if options.get("is_hybrid"):
        embed = theirs.dpt.embeddings.forward
        theirs.dpt.embeddings.forward = lambda images: embed(images, interpolate_pos_encoding=True)
    return theirs


def by_dpts_authors(theirs: Any, backbone: Mapping[str, Tensor]) -> State:
    """As they are saved: timm's transformer below `pretrained.model`, fusion counted from the finest level."""
    state = {f"pretrained.model.{key}": tensor for key, tensor in backbone.items()}
    state["pretrained.model.head.weight"] = torch.ones(3, 128)
    for key, tensor in theirs.state_dict().items():
        if match := re.match(r"neck\.reassemble_stage\.readout_projects\.(\d)\.0\.(.*)", key):
            state[f"pretrained.act_postprocess{int(match[1]) + 1}.0.project.0.{match[2]}"] = tensor
        elif match := re.match(r"neck\.reassemble_stage\.layers\.(\d)\.(projection|resize)\.(.*)", key):
            place = 3 if match[2] == "projection" else 4
            state[f"pretrained.act_postprocess{int(match[1]) + 1}.{place}.{match[3]}"] = tensor
        elif match := re.match(r"neck\.convs\.(\d)\.weight", key):
            state[f"scratch.layer{int(match[1]) + 1}_rn.weight"] = tensor
        elif match := re.match(r"neck\.fusion_stage\.layers\.(\d)\.(.*)", key):
            name = match[2]
            for ours, authors in FUSION.items():
                name = name.replace(ours, authors)
            state[f"scratch.refinenet{4 - int(match[1])}.{name}"] = tensor
        elif key.startswith("head.head."):
            state[key.replace("head.head.", "scratch.output_conv.")] = tensor
        elif key.startswith("auxiliary_head.head."):
            state[key.replace("auxiliary_head.head.", "auxlayer.")] = tensor
        else:
            assert key.startswith("dpt."), key
    return state


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"readout_type": "ignore"}, HYBRID], ids=["plain", "no readout", "hybrid"])
@pytest.mark.parametrize("kind", [DPTForSemanticSegmentation, DPTForDepthEstimation])
def test_dpt_of_its_authors(kind: Any, options: dict[str, Any], enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    depth = kind is DPTForDepthEstimation
    # The authors' segmentation has batch norm in its residual units.
    theirs = dpt(kind, tmp_path, enliven, use_batch_norm_in_fusion_residual=not depth, **options)
    backbone: Any = vitdense.load_model(tmp_path).backbone
    torch.save(by_dpts_authors(theirs, backbone.backbone.state_dict()), tmp_path / "dpt.pt")
    ours = vitdense.load_model(tmp_path / "dpt.pt")
    assert ours.backbone.mean == (0.5, 0.5, 0.5)
    images = torch.rand(1, 3, 96, 96)
    outputs = theirs(ours.normalise(images))
    expected = outputs.predicted_depth[:, None] if depth else outputs.logits
    assert apart([ours({"images": images})["depth" if depth else "logits"]], [expected]) < SINGLE


def test_tensors_that_dpts_authors_do_not_have_are_named(enliven: Enliven, tmp_path: Path) -> None:
    theirs = dpt(DPTForDepthEstimation, tmp_path, enliven)
    backbone: Any = vitdense.load_model(tmp_path).backbone
    state = by_dpts_authors(theirs, backbone.backbone.state_dict())
    for name in ("scratch.refinenet5.out_conv.weight", "pretrained.act_postprocess1.7.weight", "surprise"):
        torch.save({**state, name: torch.ones(2)}, tmp_path / "dpt.pt")
        with pytest.raises(WeightsError, match=f"belong to no part of its model: .*{re.escape(name)}"):
            vitdense.load_model(tmp_path / "dpt.pt")


# ---------------------------------------------------------------- mmseg


def upernet(backbone: Any, folder: Path, enliven: Enliven, **options: Any) -> Any:
    sizes: Any = {"hidden_size": 16, "auxiliary_channels": 8, "num_labels": 6}
    theirs: Any = enliven(UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **sizes, **options)))
    for key, buffer in theirs.named_buffers():
        if key.endswith("running_var"):
            buffer.fill_(0.7)
    theirs.save_pretrained(folder)
    return theirs


def by_mmseg(theirs: Any, backbone: Mapping[str, Tensor]) -> State:
    """As mmseg saves it: `bn` for batch norms, `conv_seg` for classifiers."""
    state = {f"backbone.{key}": tensor for key, tensor in backbone.items()}
    for key, tensor in theirs.state_dict().items():
        if key.startswith(("decode_head.", "auxiliary_head.")):
            state[key.replace("batch_norm", "bn").replace("classifier", "conv_seg")] = tensor
    return state


@torch.no_grad()
@pytest.mark.parametrize("auxiliary", [True, False])
def test_mmsegs_upernet_on_swin(auxiliary: bool, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    stages: Any = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    swin = SwinConfig(embed_dim=16, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=5, **stages)
    theirs = upernet(swin, tmp_path, enliven, use_auxiliary_head=auxiliary)
    names = translate(vitdense.load_model(tmp_path).backbone.state_dict(), MMSEG, "out")
    assert not names.strange
    torch.save({"state_dict": by_mmseg(theirs, names.state), "meta": {}}, tmp_path / "upernet.pth")
    ours: Any = vitdense.load_model(tmp_path / "upernet.pth")
    images = torch.rand(1, 3, 75, 98)
    expected = theirs.decode_head(theirs.backbone(ours.normalise(images)).feature_maps)
    assert apart([ours({"images": images})["logits"]], [expected]) < SINGLE
    assert (ours.head.auxiliary_head is not None) == auxiliary


@torch.no_grad()
def test_mmsegs_upernet_on_beit(enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    options: Any = {
        "hidden_size": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 64,
        "use_relative_position_bias": True,
        "layer_norm_eps": 1e-6,
        "out_features": ["stage2", "stage3", "stage4", "stage6"],
        "add_fpn": True,
    }
    theirs = upernet(BeitConfig(**options), tmp_path, enliven)
    backbone: Any = vitdense.load_model(tmp_path).backbone
    own = backbone.backbone.state_dict()
    authors = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in own.items()}
    torch.save({"state_dict": by_mmseg(theirs, authors | backbone.adapter.state_dict())}, tmp_path / "upernet.pth")
    ours = vitdense.load_model(tmp_path / "upernet.pth")
    assert ours.backbone.mean == (0.485, 0.456, 0.406)
    images = torch.rand(1, 3, 64, 96)
    expected = theirs.decode_head(theirs.backbone(ours.normalise(images)).feature_maps)
    assert apart([ours({"images": images})["logits"]], [expected]) < SINGLE


def test_a_backbone_alone_is_no_whole_model(tmp_path: Path) -> None:
    backbone = vitdense.create_backbone("vit_nano_patch8")
    torch.save(backbone.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"whole models that are known here .* go to create_backbone"):
        vitdense.load_model(tmp_path / "vit.pth")

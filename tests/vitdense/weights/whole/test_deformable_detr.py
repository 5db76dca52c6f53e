"""Deformable DETR, loaded whole from what save_pretrained wrote and from the authors' names, equals transformers'."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    ResNetConfig,
    SwinConfig,
)

import vitdense
from vitdense.contracts import Batch
from vitdense.errors import WeightsError

Config: Any = DeformableDetrConfig  # typed by their fields, which are not all they take
ResNet: Any = ResNetConfig
Swin: Any = SwinConfig
SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Apart = Callable[[list[Tensor], list[Tensor]], float]
THREE: Any = {"out_features": ["stage2", "stage3", "stage4"]}
RESNET: Any = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 12, 16, 20], "embedding_size": 8}
SWIN: Any = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 5}
TWO_STAGE: Any = {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 8}
SMALL: Any = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 9,
    "num_labels": 6,
}


def detector(backbone: Any, **options: Any) -> Any:
    return DeformableDetrForObjectDetection(Config(backbone_config=backbone, **{**SMALL, **options}))


def of_timm(name: str = "resnet18", **options: Any) -> Any:
    config = Config(use_timm_backbone=True, use_pretrained_backbone=False, backbone=name, **{**SMALL, **options})
    return DeformableDetrForObjectDetection(config)


MODELS: dict[str, Callable[[], Any]] = {
    "resnet": lambda: detector(ResNet(**RESNET, **THREE)),
    "resnet, refined": lambda: detector(ResNet(**RESNET, **THREE), with_box_refine=True, encoder_n_points=3),
    "resnet, two stages": lambda: detector(ResNet(**RESNET, **THREE), **TWO_STAGE, decoder_n_points=2),
    "swin": lambda: detector(Swin(**SWIN, **THREE), with_box_refine=True),
    "swin, four stages": lambda: detector(
        Swin(**SWIN, out_features=["stage1", "stage2", "stage3", "stage4"]), num_feature_levels=5
    ),
    "timm": lambda: of_timm(**TWO_STAGE),
    "timm, one level": lambda: of_timm(num_feature_levels=1),
    "timm, dilated": lambda: of_timm("resnet26", dilation=True),
}


def published(theirs: Any, folder: Path, enliven: Enliven) -> Any:
    """With weights that carry a signal and running statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(5)
    enliven(theirs)
    with torch.no_grad():
        for name, each in theirs.named_parameters():
            if "backbone" in name and each.ndim > 1:
                each.normal_(std=each[0].numel() ** -0.5, generator=generator)
        for name, buffer in theirs.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.12 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    theirs.save_pretrained(folder)
    return theirs


def check(ours: Any, theirs: Any, apart: Apart, sizes: list[tuple[int, int]], dtype: torch.dtype, bound: float) -> None:
    """A batch of two pictures of which one is padded, and one alone."""
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    for height, width in sizes:
        images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2), dtype=dtype)
        extents = torch.tensor([[height, width - 31], [height - 25, width]])
        mask = torch.zeros(2, height, width, dtype=torch.long)
        blank = ours.normalise(images)
        for index, (tall, wide) in enumerate(extents.tolist()):
            mask[index, :tall, :wide] = 1
            blank[index, :, tall:] = 0
            blank[index, :, :, wide:] = 0
        runs: list[tuple[Batch, Any]] = [
            ({"images": images, "extents": extents}, theirs(blank, pixel_mask=mask)),
            ({"images": images[:1]}, theirs(ours.normalise(images[:1]))),
        ]
        for batch, expected in runs:
            found = ours(batch)
            assert expected.pred_boxes.std() > 0.01
            assert apart([found["logits"]], [expected.logits]) < bound
            assert apart([found["boxes_cxcywh"]], [expected.pred_boxes]) < bound


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_boxes_equal_transformers(name: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs = published(MODELS[name](), tmp_path, enliven)
    ours = vitdense.load_model(tmp_path)
    sizes = [(96, 128), (107, 139)]
    check(ours, theirs, apart, sizes, torch.float32, SINGLE)
    check(ours, theirs, apart, sizes, torch.float64, DOUBLE)


@torch.no_grad()
def test_names_of_models_in_memory_are_read_too(enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs = published(MODELS["timm"](), tmp_path, enliven)
    state = {key: each.clone() for key, each in theirs.state_dict().items()}
    assert "model.decoder.layers.0.mlp.fc1.weight" in state
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check(vitdense.load_model(tmp_path), theirs, apart, [(96, 128)], torch.float32, SINGLE)


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under the names of the authors' files."""
    heads = ("class_embed.", "bbox_embed.")
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key.removeprefix("model.")
        if name.startswith("backbone."):
            found[name.replace("backbone.model.", "backbone.0.body.")] = tensor
        elif name.startswith(("input_proj.", *heads)):
            found[name] = tensor
        elif name.startswith("query_position_embeddings"):
            found["query_embed.weight"] = tensor
        else:
            name = name.replace("mlp.fc", "linear")
            if name.startswith("encoder."):
                name = name.replace("self_attn_layer_norm", "norm1").replace("final_layer_norm", "norm2")
            else:
                name = name.replace("encoder_attn_layer_norm", "norm1").replace("encoder_attn", "cross_attn")
                name = name.replace("self_attn_layer_norm", "norm2").replace("final_layer_norm", "norm3")
            found["transformer." + name.replace("self_attn.o_proj", "self_attn.out_proj")] = tensor
    for key in [key for key in found if ".self_attn.q_proj." in key]:
        parts = [found.pop(key.replace("q_proj", f"{each}_proj")) for each in "qkv"]
        found[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", [{}, {"with_box_refine": True}, TWO_STAGE], ids=str)
def test_files_of_the_authors_are_read(kind: dict[str, Any], enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    heads: Any = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "two_stage_num_proposals": 300}
    theirs = published(of_timm(**{**kind, **heads}), tmp_path / "saved", enliven)
    torch.save({"model": original(theirs.state_dict())}, tmp_path / "checkpoint.pth")
    # In double precision: among 300 proposals are scores that single precision can't tell apart, and ranks either way.
    check(vitdense.load_model(tmp_path / "checkpoint.pth"), theirs, apart, [(160, 192)], torch.float64, DOUBLE)


def test_every_tensor_and_setting_is_accounted_for(enliven: Enliven, tmp_path: Path) -> None:
    published(MODELS["resnet"](), tmp_path, enliven)
    file, settings = tmp_path / "model.safetensors", tmp_path / "config.json"
    state, config = load_file(file), json.loads(settings.read_text())

    def refused(state: dict[str, Tensor], config: dict[str, Any], message: str) -> None:
        save_file(state, file, metadata={"format": "pt"})
        settings.write_text(json.dumps(config))
        with pytest.raises(WeightsError, match=message):
            vitdense.load_model(tmp_path)

    refused({**state, "surprise": torch.ones(1)}, config, "belong to no part of its model: surprise")
    refused({**state, "model.encoder.surprise": torch.ones(1)}, config, "unexpected encoder.surprise")
    lacking = {key: each for key, each in state.items() if key != "model.level_embed"}
    refused(lacking, config, "level_embed")
    refused(state, {**config, "activation_function": "gelu"}, "activation_function 'gelu'; known here: 'relu'")
    refused(state, {**config, "encoder_ffn_dim": 48}, "encoder_ffn_dim 48 and decoder_ffn_dim 24")


def test_a_picture_is_detected_in(enliven: Enliven, tmp_path: Path) -> None:
    import numpy as np

    published(MODELS["swin"](), tmp_path, enliven)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(i): f"thing {i}" for i in range(6)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = vitdense.load_model(tmp_path)
    assert model.classes == tuple(f"thing {i}" for i in range(6))
    picture = np.random.default_rng(0).integers(0, 256, (75, 98, 3), dtype=np.uint8)
    (found,) = model.predict([picture])
    assert len(found) == 54
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= 98).all()
    assert (found.boxes[:, 3] <= 75).all()

"""transformers' RT-DETR and D-FINE, loaded whole from what save_pretrained wrote, give transformers' answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitdense
from vitdense.inference import infer

pytest.importorskip("transformers")
from transformers import (
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

Make = Callable[[], Any]
SINGLE, DOUBLE = (torch.float32, 1e-5), (torch.float64, 1e-9)
SIZES: Any = {
    "encoder_hidden_dim": 24,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28,
    "decoder_layers": 2,
    "num_queries": 12,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "d_model": 32,
    "encoder_in_channels": [12, 16, 20],
    "decoder_in_channels": [24, 24, 24],
    "num_labels": 6,
}
STAGES: Any = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1], "embedding_size": 8, "out_indices": [2, 3, 4]}


def resnet(**options: Any) -> Any:
    return RTDetrResNetConfig(**{**STAGES, "layer_type": "basic", **options})


def hgnet(**options: Any) -> Any:
    sizes: Any = {
        "stem_channels": [3, 6, 8],
        "stage_in_channels": [8, 10, 12, 16],
        "stage_mid_channels": [6, 8, 8, 10],
        "stage_out_channels": [10, 12, 16, 20],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [2, 2, 2, 2],
        "hidden_sizes": [10, 12, 16, 20],
        "out_indices": [2, 3, 4],
    }
    return HGNetV2Config(**{**sizes, **options})


def rtdetr(backbone: Any, **options: Any) -> Any:
    return RTDetrV2ForObjectDetection(RTDetrV2Config(backbone_config=backbone, **{**SIZES, **options}))


def first_rtdetr(backbone: Any, **options: Any) -> Any:
    return RTDetrForObjectDetection(RTDetrConfig(backbone_config=backbone, **{**SIZES, **options}))


def dfine(backbone: Any, **options: Any) -> Any:
    return DFineForObjectDetection(DFineConfig(backbone_config=backbone, **{**SIZES, **options}))


NANO: Any = {
    "num_feature_levels": 2,
    "encode_proj_layers": [1],
    "encoder_in_channels": [16, 20],
    "decoder_in_channels": [24, 24],
    "decoder_n_points": [6, 4],
    "d_model": 24,
    "depth_mult": 0.5,
    "hidden_expansion": 0.34,
    "feat_strides": [16, 32],
}
MODELS: dict[str, Make] = {
    "rtdetr, blocks of two": lambda: rtdetr(resnet(), hidden_expansion=0.5),
    "rtdetr, bottlenecks": lambda: rtdetr(
        resnet(hidden_sizes=[16, 32, 48, 64], layer_type="bottleneck"), encoder_in_channels=[32, 48, 64]
    ),
    "rtdetr, discrete, no denoising": lambda: rtdetr(
        resnet(), decoder_method="discrete", num_denoising=0, decoder_n_points=3, freeze_backbone_batch_norms=False
    ),
    "rtdetr, a plain ResNet": lambda: rtdetr(ResNetConfig(**STAGES, layer_type="basic"), num_feature_levels=3),
    "rtdetr, four levels": lambda: rtdetr(resnet(), num_feature_levels=4, decoder_n_levels=4),
    "first rtdetr": lambda: first_rtdetr(resnet(), encoder_layers=2),
    "dfine": lambda: dfine(hgnet()),
    "dfine, nano": lambda: dfine(hgnet(use_learnable_affine_block=True, out_indices=[3, 4]), **NANO),
    "dfine, RT-DETR's ResNet": lambda: dfine(resnet(), max_num_bins=16, reg_scale=8.0, up=0.25, lqe_layers=3),
}


def alive(module: nn.Module) -> nn.Module:
    """Random weights that carry a signal through every layer, and statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            kind = name.rpartition(".")[2]
            if kind in ("up", "reg_scale", "num_batches_tracked") or kind.endswith("_points_scale"):
                continue
            if kind == "running_var":
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                continue
            matrix = tensor.ndim in (2, 4) and kind == "weight"
            deviation = tensor[0].numel() ** -0.5 if matrix else 0.12
            centre = 1.0 if tensor.ndim == 1 and kind in ("weight", "scale") else 0.0
            tensor.copy_(centre + deviation * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def exact_scales(model: Any) -> None:
    """Their buffer of 1 / points is in single precision, whatever the model is in."""
    for name, buffer in model.named_buffers():
        if name.endswith("_points_scale"):
            buffer.copy_(1 / (1 / buffer).round())


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_answers_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs = alive(MODELS[name]())
    theirs.save_pretrained(tmp_path)
    ours = vitdense.load_model(tmp_path)
    theirs = theirs.double()
    exact_scales(theirs)
    images = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = theirs(images)
    assert float(expected.logits.std()) > 0.05
    for dtype, bound in (SINGLE, DOUBLE):
        outputs = ours.to(dtype)({"images": images.to(dtype)})
        for given, wanted in ((outputs["logits"], expected.logits), (outputs["boxes_cxcywh"], expected.pred_boxes)):
            assert given.dtype == dtype
            assert given.shape == wanted.shape
            assert float((given - wanted).abs().max() / wanted.abs().mean().clamp(min=1)) < bound


@torch.no_grad()
def test_a_whole_model_finds_things_in_pictures_of_any_size(tmp_path: Path) -> None:
    theirs = alive(MODELS["rtdetr, blocks of two"]())
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(index): f"thing {index}" for index in range(6)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours: Any = vitdense.load_model(tmp_path)
    assert ours.classes == tuple(f"thing {index}" for index in range(6))
    assert (ours.backbone.mean, ours.backbone.std) == ((0.0,) * 3, (1.0,) * 3)
    batch: Any = {"images": torch.rand(1, 3, 75, 121), "sizes": [(150, 242)]}
    found = infer(ours, batch, ours.inference)[0]
    assert found.boxes.shape == (12, 4)
    assert bool((found.boxes <= torch.tensor([242, 150, 242, 150])).all())


@torch.no_grad()
def test_statistics_come_from_a_processor_that_norms(tmp_path: Path) -> None:
    alive(MODELS["rtdetr, blocks of two"]()).save_pretrained(tmp_path)
    facts = {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    model = vitdense.load_model(tmp_path)
    assert (model.backbone.mean, model.backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))

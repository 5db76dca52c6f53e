"""transformers' RT-DETR and D-FINE, loaded whole from what save_pretrained wrote, give transformers' answers."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def alive(module: nn.Module) -> Any:
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


# From transformers' names in memory back to those of the authors, as the scripts that made transformers' files went.
BACK = (
    (r"^model\.", ""),
    (r"^backbone\.model\.", "backbone."),
    (r"\.convolution\.", ".conv."),
    (r"^encoder\.aifi\.(\d+)\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.encoder.\1.layers.\2.norm1."),
    (r"^encoder\.aifi\.(\d+)\.layers\.(\d+)\.final_layer_norm\.", r"encoder.encoder.\1.layers.\2.norm2."),
    (r"^encoder\.aifi\.", "encoder.encoder."),
    (r"mlp\.(?:fc1|layers\.0)\.", "linear1."),
    (r"mlp\.(?:fc2|layers\.1)\.", "linear2."),
    (r"^encoder_input_proj\.(\d+)\.0\.", r"encoder.input_proj.\1.conv."),
    (r"^encoder_input_proj\.(\d+)\.1\.", r"encoder.input_proj.\1.norm."),
    (r"^decoder_input_proj\.(\d+)\.0\.", r"decoder.input_proj.\1.conv."),
    (r"^decoder_input_proj\.(\d+)\.1\.", r"decoder.input_proj.\1.norm."),
    (r"^decoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"decoder.decoder.layers.\1.norm1."),
    (r"^decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.", r"decoder.decoder.layers.\1.norm2."),
    (r"^decoder\.layers\.(\d+)\.final_layer_norm\.", r"decoder.decoder.layers.\1.norm3."),
    (r"^decoder\.layers\.(\d+)\.encoder_attn\.", r"decoder.decoder.layers.\1.cross_attn."),
    (r"^decoder\.(layers|lqe_layers)\.", r"decoder.decoder.\1."),
    (r"cross_attn\.n_points_scale", "cross_attn.num_points_scale"),
    (r"^decoder\.class_embed\.", "decoder.dec_score_head."),
    (r"^decoder\.bbox_embed\.", "decoder.dec_bbox_head."),
    (r"^enc_output\.0\.", "decoder.enc_output.proj."),
    (r"^enc_output\.1\.", "decoder.enc_output.norm."),
    (r"^(enc_score_head|enc_bbox_head|denoising_class_embed)\.", r"decoder.\1."),
    (r"o_proj\.", "out_proj."),
)
RESNET = (
    (r"normalization\.", "norm."),
    (r"^backbone\.embedder\.embedder\.0\.", "backbone.conv1.conv1_1."),
    (r"^backbone\.embedder\.embedder\.1\.", "backbone.conv1.conv1_2."),
    (r"^backbone\.embedder\.embedder\.2\.", "backbone.conv1.conv1_3."),
    (r"^backbone\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"backbone.res_layers.\1.blocks.\2."),
    (r"\.shortcut\.1\.", ".short.conv."),
    (r"\.shortcut\.", ".short."),
    (r"^(backbone\..*)\.layer\.0\.", r"\1.branch2a."),
    (r"^(backbone\..*)\.layer\.1\.", r"\1.branch2b."),
    (r"^(backbone\..*)\.layer\.2\.", r"\1.branch2c."),
)
HGNET = (
    (r"normalization\.", "bn."),
    (r"^backbone\.embedder\.", "backbone.stem."),
    (r"^backbone\.encoder\.", "backbone."),
)
ELAN = (
    (r"^(encoder\.[fp][pa]n_blocks\.\d+)\.conv([14])\.", r"\1.cv\2."),
    (r"^(encoder\.[fp][pa]n_blocks\.\d+)\.csp_rep1\.", r"\1.cv2.0."),
    (r"^(encoder\.[fp][pa]n_blocks\.\d+)\.conv2\.", r"\1.cv2.1."),
    (r"^(encoder\.[fp][pa]n_blocks\.\d+)\.csp_rep2\.", r"\1.cv3.0."),
    (r"^(encoder\.[fp][pa]n_blocks\.\d+)\.conv3\.", r"\1.cv3.1."),
    (r"^(encoder\.downsample_convs\.\d+)\.conv", r"\1.0.cv"),
)


def by_the_authors(theirs: Any, table: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """The state under the authors' names; query, key and value of an attention are one tensor there."""
    state: dict[str, Tensor] = {}
    for key, tensor in theirs.model.state_dict().items():
        name = key
        for pattern, put in table:
            name = re.sub(pattern, put, name)
        state[name] = tensor.clone()
    for key in [key for key in state if ".q_proj." in key]:
        parts = [state.pop(key.replace(".q_proj.", f".{each}_proj.")) for each in "qkv"]
        state[re.sub(r"\.q_proj\.(\w+)$", r".in_proj_\1", key)] = torch.cat(parts)
    return state | {"decoder.anchors": torch.zeros(1, 4, 4), "decoder.valid_mask": torch.zeros(1, 4, 1)}


EIGHT: Any = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "num_queries": 300}
ORIGINALS: dict[str, tuple[Make, tuple[tuple[str, str], ...]]] = {
    "rtdetr": (lambda: rtdetr(resnet(), hidden_expansion=0.5, **EIGHT), BACK + RESNET),
    "rtdetr, bottlenecks": (
        lambda: rtdetr(
            resnet(hidden_sizes=[16, 32, 48, 64], layer_type="bottleneck"), encoder_in_channels=[32, 48, 64], **EIGHT
        ),
        BACK + RESNET,
    ),
    "first rtdetr": (lambda: first_rtdetr(resnet(), **EIGHT), BACK + RESNET),
    "dfine": (lambda: dfine(hgnet(), **EIGHT, decoder_n_points=[3, 6, 3], hidden_expansion=0.5), BACK + HGNET + ELAN),
    "dfine, nano": (
        lambda: dfine(hgnet(use_learnable_affine_block=True, out_indices=[3, 4]), **NANO, **EIGHT),
        BACK + HGNET + ELAN,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ORIGINALS)
def test_files_of_the_authors_give_the_same_answers(name: str, tmp_path: Path) -> None:
    make, table = ORIGINALS[name]
    theirs = alive(make())
    state = by_the_authors(theirs, table)
    assert "decoder.dec_score_head.0.weight" in state
    torch.save({"ema": {"module": state}}, tmp_path / "model.pth")
    ours = vitdense.load_model(tmp_path / "model.pth").double()
    theirs = theirs.double()
    exact_scales(theirs)
    images = torch.rand(1, 3, 256, 320, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected, outputs = theirs(images), ours({"images": images})
    for given, wanted in ((outputs["logits"], expected.logits), (outputs["boxes_cxcywh"], expected.pred_boxes)):
        assert given.shape == wanted.shape
        assert float((given - wanted).abs().max() / wanted.abs().mean().clamp(min=1)) < DOUBLE[1]


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


@torch.no_grad()
def test_sizes_are_the_processors_or_what_was_published(tmp_path: Path) -> None:
    alive(MODELS["rtdetr, blocks of two"]()).save_pretrained(tmp_path)
    assert vitdense.load_model(tmp_path).inference.size == (640, 640)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 320, "width": 416}}))
    assert vitdense.load_model(tmp_path).inference.size == (320, 416)

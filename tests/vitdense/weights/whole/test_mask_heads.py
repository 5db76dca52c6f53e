"""Mask2Former and EoMT, loaded whole from what save_pretrained wrote, equal transformers'."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    EomtConfig,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)
from transformers.models.eomt_dinov3.configuration_eomt_dinov3 import EomtDinov3Config
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import EomtDinov3ForUniversalSegmentation

import vitdense
from vitdense.contracts import Segments
from vitdense.errors import UserError, WeightsError

Apart = Callable[[list[Tensor], list[Tensor]], float]
# Typed by their fields, which are not all they take.
Config: Any = Mask2FormerConfig
V2: Any = EomtConfig
V3: Any = EomtDinov3Config
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN: Any = {
    "embed_dim": 16,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 5,
    "out_features": STAGES,
}
RESNET: Any = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 24], "embedding_size": 8, "out_features": STAGES}
SMALL: Any = {
    "hidden_dim": 32,
    "feature_size": 32,
    "mask_feature_size": 32,
    "num_attention_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 5,
    "dim_feedforward": 48,
    "encoder_feedforward_dim": 40,
    "num_queries": 9,
    "num_labels": 6,
}
PLAIN: Any = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_blocks": 3,
    "num_queries": 7,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": 5,
}


def mask2former(backbone: Any = None, **options: Any) -> Any:
    network = backbone or SwinConfig(**SWIN)
    return Mask2FormerForUniversalSegmentation(Config(backbone_config=network, **{**SMALL, **options}))


PYRAMIDS: dict[str, Callable[[], Any]] = {
    "swin": mask2former,
    "swin, widths that differ": lambda: mask2former(
        hidden_dim=48, feature_size=64, mask_feature_size=24, num_queries=5, num_labels=133
    ),
    "swin, few layers": lambda: mask2former(encoder_layers=1, decoder_layers=2, num_attention_heads=8),
    "resnet": lambda: mask2former(ResNetConfig(**RESNET)),
}
PATCHES: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: EomtForUniversalSegmentation(V2(**PLAIN)),
    "dinov2, gated": lambda: EomtForUniversalSegmentation(
        V2(**{**PLAIN, "num_upscale_blocks": 1}, use_swiglu_ffn=True)
    ),
    "dinov2, no registers": lambda: EomtForUniversalSegmentation(V2(**PLAIN, num_register_tokens=0)),
    "dinov2, patches of 8": lambda: EomtForUniversalSegmentation(V2(**{**PLAIN, "patch_size": 8, "num_blocks": 1})),
    "dinov3": lambda: EomtDinov3ForUniversalSegmentation(V3(**PLAIN, intermediate_size=48)),
    "dinov3, gated": lambda: EomtDinov3ForUniversalSegmentation(V3(**PLAIN, intermediate_size=48, use_gated_mlp=True)),
}


def alive(module: nn.Module) -> Any:
    """Random weights that carry a signal, running statistics that are not 0 and 1, and queries that stay apart."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            kind = name.rpartition(".")[2]
            if (
                not tensor.is_floating_point()
                or not tensor.numel()
                or "criterion" in name
                or "inv_freq" in name
                or "attn_mask" in name
            ):
                continue
            if kind == "running_var":
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                continue
            scale = 0.12 if tensor.ndim == 1 else tensor[0].numel() ** -0.5
            scale = 1.0 if "quer" in name and "proj" not in name else scale
            centre = 1.0 if tensor.ndim == 1 and kind in ("weight", "lambda1") else 0.0
            tensor.copy_(centre + scale * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def published(theirs: Any, folder: Path, chance: float = 0.0) -> Any:
    theirs = alive(theirs)
    if hasattr(theirs, "attn_mask_probs"):
        theirs.attn_mask_probs.fill_(chance)
    theirs.save_pretrained(folder)
    return theirs


def check(
    ours: Any, theirs: Any, apart: Apart, size: tuple[int, int], dtypes: tuple[tuple[torch.dtype, float], ...]
) -> None:
    """Theirs is run in the first of the precisions, so that what differs in another one is ours alone."""
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    peer, precise = deepcopy(theirs).to(dtypes[0][0]), dtypes[0][0]
    for dtype, bound in dtypes:
        twin = deepcopy(ours).to(dtype)
        expected = peer(deepcopy(ours).to(precise).normalise(images.to(precise)))
        assert expected.masks_queries_logits.std() > 0.3
        found = twin({"images": images.to(dtype)})
        assert apart([found["logits"]], [expected.class_queries_logits.to(dtype)]) < bound
        assert apart([found["masks"]], [expected.masks_queries_logits.to(dtype)]) < bound


BOTH = ((torch.float64, 1e-9), (torch.float32, 1e-5))


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 128), (107, 139)])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_mask2former_equals_transformers(name: str, size: tuple[int, int], apart: Apart, tmp_path: Path) -> None:
    theirs = published(PYRAMIDS[name](), tmp_path)
    check(vitdense.load_model(tmp_path), theirs, apart, size, BOTH)


@torch.no_grad()
@pytest.mark.parametrize("chance", [0.0, 1.0])
@pytest.mark.parametrize("name", PATCHES)
def test_eomt_equals_transformers(name: str, chance: float, apart: Apart, tmp_path: Path) -> None:
    # In single precision alone: transformers rounds masks and angles to float32 (tests/heads/test_eomt.py has both).
    theirs = published(PATCHES[name](), tmp_path, chance)
    check(vitdense.load_model(tmp_path), theirs, apart, (64, 64), BOTH[1:])


@torch.no_grad()
def test_a_published_model_says_what_a_picture_consists_of(tmp_path: Path) -> None:
    published(mask2former(), tmp_path)
    picture = torch.randint(0, 256, (90, 70, 3), dtype=torch.uint8).numpy()
    found = vitdense.load_model(tmp_path).predict([picture])[0]
    assert isinstance(found, Segments)
    assert found.ids.shape == (90, 70)
    classes = vitdense.load_model(tmp_path, ["task=semantic"]).predict([picture])[0]
    assert classes.shape == (90, 70)
    assert 0 <= classes.min() <= classes.max() < 6
    things = vitdense.load_model(tmp_path, ["task=instance"]).predict([picture])[0]
    assert things.masks.shape[1:] == (90, 70)


def test_of_cocos_classes_stuff_is_known(tmp_path: Path) -> None:
    theirs = mask2former(num_labels=133)
    theirs.config.id2label = {0: "person", **{index: f"class {index}" for index in range(1, 133)}}
    published(theirs, tmp_path)
    assert vitdense.load_model(tmp_path).head.stuff == frozenset(range(80, 133))


def test_the_processors_size_becomes_that_of_inference(tmp_path: Path) -> None:
    published(mask2former(), tmp_path)
    settings = {"size": {"shortest_edge": 512, "longest_edge": 2048}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    inference = vitdense.load_model(tmp_path).inference
    assert (inference.short_side, inference.long_max) == (512, 2048)


def test_what_is_not_known_is_told(tmp_path: Path) -> None:
    published(PATCHES["dinov2"](), tmp_path, chance=0.5)
    with pytest.raises(WeightsError, match=r"attn_mask_probs \[0\.5, .* of the middle of training"):
        vitdense.load_model(tmp_path)
    published(mask2former(pre_norm=True), tmp_path)
    with pytest.raises(WeightsError, match="has pre_norm True; known here: False"):
        vitdense.load_model(tmp_path)
    published(mask2former(), tmp_path)
    with pytest.raises(UserError, match="nonsense can't be set"):
        vitdense.load_model(tmp_path, ["nonsense=1"])
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "model.strange": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="belong to no part of its model: strange"):
        vitdense.load_model(tmp_path)
    del state["class_predictor.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"lacks class_predictor\.weight of its Mask2Former"):
        vitdense.load_model(tmp_path)

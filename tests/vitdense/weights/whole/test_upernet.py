"""transformers' UperNet, loaded whole from what save_pretrained wrote, gives transformers' outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BeitConfig,
    ConvNextConfig,
    Dinov2Config,
    ResNetConfig,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import vitdense
from vitdense.errors import WeightsError

SINGLE, DOUBLE = 1e-5, 1e-9
CASES = [(512, 512, torch.float32, SINGLE), (250, 333, torch.float32, SINGLE), (250, 333, torch.float64, DOUBLE)]
Enliven = Callable[[nn.Module], nn.Module]
Apart = Callable[[list[Tensor], list[Tensor]], float]
Make = Callable[[], Any]
STAGES: Any = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
THREE: Any = {"out_features": ["stage1", "stage2", "stage3"]}
SWIN: Any = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4]}
CONVNEXT: Any = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 12, 16, 20]}
BEIT: Any = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
TABLE: Any = {"image_size": 64, "use_relative_position_bias": True}
SHARED: Any = {
    "image_size": 128,
    "use_shared_relative_position_bias": True,
    "use_absolute_position_embeddings": True,
    "use_mean_pooling": False,
}


def upernet(backbone: Any, labels: int = 6, **options: Any) -> Any:
    sizes: Any = {"hidden_size": 16, "auxiliary_channels": 8, "num_labels": labels}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **sizes, **options))


# A model, and what its pictures must divide by for transformers to neither floor nor stretch anything.
MODELS: dict[str, tuple[Make, int]] = {
    "swin": (lambda: upernet(SwinConfig(**SWIN, **STAGES)), 1),
    "swin, no auxiliary head": (
        lambda: upernet(
            SwinConfig(**SWIN, **STAGES, window_size=5, qkv_bias=False, mlp_ratio=2.0),
            use_auxiliary_head=False,
            pool_scales=[1, 2],
        ),
        1,
    ),
    "swin, three stages": (lambda: upernet(SwinConfig(**SWIN, **THREE), labels=11), 1),
    "convnext": (lambda: upernet(ConvNextConfig(**CONVNEXT, **STAGES)), 32),
    "convnext, two auxiliary convolutions": (
        lambda: upernet(ConvNextConfig(**CONVNEXT, **STAGES), labels=3, auxiliary_num_convs=2),
        32,
    ),
    "resnet": (lambda: upernet(ResNetConfig(**CONVNEXT, embedding_size=8, **STAGES)), 32),
    "beit": (lambda: upernet(BeitConfig(**BEIT, **TABLE, **STAGES, add_fpn=True)), 32),
    "beit, one table and positions": (lambda: upernet(BeitConfig(**BEIT, **SHARED, **STAGES, add_fpn=True), 9), 32),
    "beit, maps of one size": (lambda: upernet(BeitConfig(**BEIT, **TABLE, **STAGES)), 16),
    "dinov2, maps of one size": (
        lambda: upernet(
            Dinov2Config(
                image_size=70, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, **STAGES
            )
        ),
        14,
    ),
}


def published(theirs: Any, folder: Path, enliven: Enliven) -> Any:
    """With running statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(5)
    for name, buffer in enliven(theirs).named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.12 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    theirs.save_pretrained(folder)
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_transformers(name: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    """At the picture's size and by cell: transformers resizes its logits to the picture, ours are at the stride."""
    make, multiple = MODELS[name]
    theirs = published(make(), tmp_path, enliven)
    ours = vitdense.load_model(tmp_path)
    for height, width, dtype, bound in CASES:
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(2), dtype=dtype)
        padded = F.pad(ours.normalise(images), (0, -width % multiple, 0, -height % multiple))
        given = ours({"images": images})["logits"]
        expected = theirs.decode_head(theirs.backbone(padded).feature_maps)
        assert apart([given], [expected[..., : given.shape[2], : given.shape[3]]]) < bound
        if padded.shape == images.shape:
            resized = F.interpolate(given, size=(height, width), mode="bilinear")
            assert apart([resized], [theirs(padded).logits]) < bound


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin", "beit"])
def test_the_auxiliary_head_comes_along(name: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs = published(MODELS[name][0](), tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    assert ours.head.auxiliary_weight == 0.4
    maps = list(theirs.backbone(torch.rand(1, 3, 64, 64)).feature_maps)
    assert apart([ours.head.auxiliary_head(maps[ours.head.auxiliary_level])], [theirs.auxiliary_head(maps)]) < SINGLE


@pytest.fixture
def swin_folder(enliven: Enliven, tmp_path: Path) -> Path:
    published(MODELS["swin"][0](), tmp_path, enliven)
    return tmp_path


def test_classes_palette_and_statistics_come_from_the_files(swin_folder: Path) -> None:
    config = json.loads((swin_folder / "config.json").read_text())
    config["id2label"] = {str(i): f"thing {i}" for i in range(6)}
    (swin_folder / "config.json").write_text(json.dumps(config))
    assert vitdense.load_model(swin_folder).backbone.mean == (0.485, 0.456, 0.406)
    facts = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (swin_folder / "preprocessor_config.json").write_text(json.dumps(facts))
    model = vitdense.load_model(swin_folder)
    assert (model.backbone.mean, model.backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert model.classes == tuple(f"thing {i}" for i in range(6))
    assert len(set(model.palette)) == 6
    assert not model.training


def test_a_picture_is_predicted_at_its_own_size(swin_folder: Path) -> None:
    import numpy as np

    picture = np.random.default_rng(0).integers(0, 256, (75, 98, 3), dtype=np.uint8)
    for overrides in ([], ["inference.mode=sliding", "inference.window=64"]):
        (mask,) = vitdense.load_model(swin_folder, overrides).predict([picture])
        assert mask.shape == (75, 98)
        assert mask.max() < 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"drop": "decode_head.bottleneck.conv.weight"},
            "missing bottleneck|missing decode_head.bottleneck.conv.weight",
        ),
        ({"drop": "backbone.swin.encoder.layers.0.blocks.0.layernorm_before.weight"}, "missing: .*norm1.weight"),
        ({"add": "decode_head.surprise"}, "unexpected decode_head.surprise"),
        ({"add": "backbone.swin.encoder.surprise"}, "encoder.surprise"),
        ({"add": "surprise"}, "belong to no part of its model: surprise"),
    ],
    ids=str,
)
def test_every_tensor_is_accounted_for(change: dict[str, str], message: str, swin_folder: Path) -> None:
    file = swin_folder / "model.safetensors"
    state = load_file(file)
    if "drop" in change:
        # A file has the names of version 4 or of version 5.
        name = change["drop"] if change["drop"] in state else change["drop"].replace("backbone.swin.", "backbone.")
        del state[name]
    else:
        state[change["add"]] = torch.ones(2)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=message):
        vitdense.load_model(swin_folder)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (None, {"auxiliary_concat_input": True}, "auxiliary_concat_input True; known here: False"),
        (
            None,
            {"model_type": "oneformer"},
            "is a oneformer: whole models that are known here are .* upernet, dpt, depth_anything",
        ),
        ("backbone_config", {"use_absolute_embeddings": True}, "use_absolute_embeddings True; known here: False"),
        ("backbone_config", {"num_heads": [1, 1, 1, 1]}, "of another shape: layers.1"),
    ],
    ids=str,
)
def test_what_is_not_built_here_is_refused(
    part: str | None, change: dict[str, Any], message: str, swin_folder: Path
) -> None:
    config = json.loads((swin_folder / "config.json").read_text())
    (config if part is None else config[part]).update(change)
    (swin_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        vitdense.load_model(swin_folder)

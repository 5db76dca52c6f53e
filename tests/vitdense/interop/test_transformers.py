"""Backbones under transformers' heads: saved, loaded and known to its auto classes."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitdense.backbones.swin import Swin, SwinConfig
from vitdense.contracts import BACKBONES
from vitdense.errors import UserError
from vitdense.interop.transformers import VitdenseBackbone, VitdenseConfig

hf: Any = transformers  # typed by half: configs lack fields, eval() has no types
Wrapped: Any = VitdenseBackbone

DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 5,
}
MASK2FORMER = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_layers": 1, "decoder_layers": 2}
MASK2FORMER |= {"encoder_feedforward_dim": 32, "dim_feedforward": 32, "num_attention_heads": 2, "num_queries": 5}
PYRAMID = {"name": "vit_nano_patch8", "adapter": {"name": "simple_pyramid", "channels": 32}, "options": {"depth": 2}}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = hf.logging.get_verbosity()
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    yield
    hf.logging.set_verbosity(before)
    hf.logging.enable_progress_bar()


def upernet(backbone: VitdenseConfig) -> Any:
    config = hf.UperNetConfig(backbone_config=backbone, hidden_size=32, num_labels=5)
    return hf.UperNetForSemanticSegmentation(config)


def mask2former(backbone: VitdenseConfig) -> Any:
    config = hf.Mask2FormerConfig(backbone_config=backbone, num_labels=3, **MASK2FORMER)
    return hf.Mask2FormerForUniversalSegmentation(config)


def maskformer(backbone: VitdenseConfig) -> Any:
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32}
    decoder = hf.DetrConfig(**DETR)
    config = hf.MaskFormerConfig(backbone_config=backbone, decoder_config=decoder, num_labels=3, **sizes)
    return hf.MaskFormerForInstanceSegmentation(config)


def detr(backbone: VitdenseConfig) -> Any:
    return hf.DetrForObjectDetection(hf.DetrConfig(backbone_config=backbone, num_labels=3, **DETR))


def conditional_detr(backbone: VitdenseConfig) -> Any:
    config = hf.ConditionalDetrConfig(backbone_config=backbone, num_labels=3, **DETR)
    return hf.ConditionalDetrForObjectDetection(config)


def deformable_detr(backbone: VitdenseConfig) -> Any:
    config = hf.DeformableDetrConfig(backbone_config=backbone, num_labels=3, **DETR)
    return hf.DeformableDetrForObjectDetection(config)


def rt_detr(backbone: VitdenseConfig) -> Any:
    backbone.out_indices = [1, 2, 3]
    channels = (backbone.stage_channels or [])[1:]
    sizes = {"encoder_in_channels": channels, "decoder_in_channels": [32, 32, 32], "encoder_hidden_dim": 32}
    config = hf.RTDetrV2Config(backbone_config=backbone, num_labels=3, num_denoising=0, **sizes, **DETR)
    return hf.RTDetrV2ForObjectDetection(config)


def reloaded(model: Any, folder: Path) -> Any:
    """Saved, loaded, copied: a loaded weight lies where the file has it, and off 64 bytes kernels round otherwise."""
    model.save_pretrained(folder)
    return copy.deepcopy(type(model).from_pretrained(folder))


def outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: value for name, value in model(images).items() if torch.is_tensor(value)}


@pytest.mark.parametrize("backbone", [{"name": "swin_nano"}, PYRAMID], ids=["swin", "plain"])
@pytest.mark.parametrize(
    "build",
    [upernet, mask2former, maskformer, detr, conditional_detr, deformable_detr, rt_detr],
    ids=lambda f: f.__name__,
)
def test_a_saved_model_gives_the_same_bits(
    build: Callable[[VitdenseConfig], Any], backbone: dict[str, Any], tmp_path: Path, odd_images: Tensor
) -> None:
    model = build(VitdenseConfig(**backbone)).eval()
    again = reloaded(model, tmp_path)
    images = torch.randn(1, 3, 96, 128) if build is rt_detr else odd_images
    expected, given = outputs(model, images), outputs(again, images)
    assert len(expected) >= 1
    assert expected.keys() == given.keys()
    for name, value in expected.items():
        assert value.isfinite().all(), name
        assert torch.equal(given[name], value), name


def test_upernet_trains_the_backbone(odd_images: Tensor) -> None:
    model = upernet(VitdenseConfig(name="swin_nano")).train()
    pair = torch.cat([odd_images, odd_images.flip(3)])  # two, for the norm of UPerNet's pooling to 1 x 1
    loss = model(pair, labels=torch.randint(0, 5, (2, 97, 130))).loss
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
@pytest.mark.parametrize(
    ("chosen", "stages"),
    [
        ({}, [0, 1, 2, 3]),
        ({"out_indices": [1, -1]}, [1, 3]),
        ({"out_indices": (2,)}, [2]),
        ({"out_features": ["stage1", "stage3"]}, [0, 2]),
    ],
)
def test_out_features_and_indices_choose_the_maps(
    chosen: dict[str, Any], stages: list[int], make: Any, odd_images: Tensor
) -> None:
    backbone = make("swin").eval()
    model = Wrapped.of(backbone, **chosen).eval()
    maps, every = model(odd_images).feature_maps, backbone(odd_images)
    assert len(maps) == len(stages)
    assert all(torch.equal(each, every[i]) for each, i in zip(maps, stages, strict=True))
    assert model.channels == [each.shape[1] for each in maps]
    assert model.strides == [backbone.levels[i].stride for i in stages]
    assert model.out_features == [f"stage{i + 1}" for i in stages]


@pytest.mark.parametrize("chosen", [{"out_indices": [4]}, {"out_features": ["stem"]}, {"out_indices": [2, 1]}])
def test_stages_that_are_none_are_refused(chosen: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"out_(indices|features) must be"):
        VitdenseConfig(name="swin_nano", **chosen)


@torch.no_grad()
def test_the_auto_classes_know_the_type(tmp_path: Path, make: Any, odd_images: Tensor) -> None:
    model = Wrapped.of(make("plain"), out_indices=[0, 2]).eval()
    again = reloaded(model, tmp_path)
    config = hf.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is VitdenseConfig
    assert (config.stage_channels, config.stage_strides) == ([32] * 4, [4, 8, 16, 32])
    fresh = hf.AutoBackbone.from_config(config)
    assert type(fresh) is Wrapped
    assert (fresh.out_indices, fresh.channels, fresh.strides) == ([0, 2], [32, 32], [4, 16])
    for a, b in zip(model(odd_images).feature_maps, again(odd_images).feature_maps, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_all_maps_are_the_hidden_states_and_tuples_come_when_asked(make: Any, odd_images: Tensor) -> None:
    model = Wrapped.of(make("swin"), out_indices=[3]).eval()
    assert model(odd_images).hidden_states is None
    full = model(odd_images, output_hidden_states=True)
    assert len(full.hidden_states) == 4
    (maps,) = model(odd_images, return_dict=False)
    assert torch.equal(maps[0], full.hidden_states[3])


def test_the_initialisation_is_the_backbones_own() -> None:
    torch.manual_seed(0)
    wrapped = upernet(VitdenseConfig(name="swin_nano")).backbone.vitdense
    torch.manual_seed(0)
    alone = BACKBONES.create("swin_nano").build()
    assert all(torch.equal(a, b) for a, b in zip(wrapped.parameters(), alone.parameters(), strict=True))


def test_options_and_pixel_statistics_travel_in_the_config(tmp_path: Path, make: Any) -> None:
    Wrapped.of(make("swin", in_channels=1, mean=(0.25,), window=5)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["name"], written["options"]["window"]) == ("swin_nano", 5)
    assert "weights" not in written["options"]
    again = Wrapped.from_pretrained(tmp_path)
    assert again.config.image_mean == [0.25]
    assert again.config.image_std == pytest.approx([sum((0.229, 0.224, 0.225)) / 3])
    assert again.vitdense.mean == (0.25,)


def test_frozen_stages_stay_frozen(tmp_path: Path, make: Any) -> None:
    model = Wrapped.of(make("swin", frozen_stages=2))
    again = reloaded(model, tmp_path)
    expected = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert not all(expected.values())
    assert {name: parameter.requires_grad for name, parameter in again.named_parameters()} == expected


def test_what_a_file_lacks_is_initialised_as_the_backbone_does(tmp_path: Path, make: Any) -> None:
    Wrapped.of(make("swin")).save_pretrained(tmp_path)
    file, key = tmp_path / "model.safetensors", "vitdense.layers.0.blocks.0.norm1.weight"
    state = load_file(file)
    del state[key]
    save_file(state, file, metadata={"format": "pt"})
    again, report = Wrapped.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {key}
    assert torch.equal(again.state_dict()[key], torch.ones(32))


class ScaledSwin(Swin):
    """A Swin with a buffer that no file holds, as backbones of other libraries have."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(config)
        self.register_buffer("scale", torch.arange(1.0, 5.0), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [each * factor for each, factor in zip(super().forward(images), self.get_buffer("scale"), strict=True)]


class ScaledSwinConfig(SwinConfig):
    def build(self) -> ScaledSwin:
        return ScaledSwin(self)


@torch.no_grad()
@pytest.mark.parametrize("alone", [True, False])
def test_buffers_that_no_file_holds_are_as_built(
    alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd_images: Tensor
) -> None:
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    sizes = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    BACKBONES.register("scaled_swin", **sizes)(ScaledSwinConfig)
    config = VitdenseConfig(name="scaled_swin")
    model = (Wrapped(config) if alone else upernet(config)).eval()
    again = reloaded(model, tmp_path)
    backbone = again if alone else again.backbone
    assert torch.equal(backbone.vitdense.get_buffer("scale"), torch.arange(1.0, 5.0))
    maps = (model if alone else model.backbone)(odd_images).feature_maps
    assert all(torch.equal(a, b) for a, b in zip(backbone(odd_images).feature_maps, maps, strict=True))


@torch.no_grad()
def test_a_backbone_of_timms_runs_too(tmp_path: Path, make: Any, odd_images: Tensor) -> None:
    model = Wrapped.of(make("timm")).eval()
    again = reloaded(model, tmp_path)
    for a, b in zip(model(odd_images).feature_maps, again(odd_images).feature_maps, strict=True):
        assert torch.equal(a, b)


def test_unknown_names_and_options_are_named() -> None:
    with pytest.raises(UserError, match="no backbone named 'swin_nan'; did you mean 'swin_nano'"):
        VitdenseConfig(name="swin_nan")
    with pytest.raises(UserError, match=r"swin_nano\.windows: unknown key, did you mean 'window'"):
        VitdenseConfig(name="swin_nano", options={"windows": 7})


def test_a_config_that_contradicts_itself_is_refused() -> None:
    config = VitdenseConfig(name="swin_nano")
    config.options = {**(config.options or {}), "embed_dim": 64}
    with pytest.raises(UserError, match=r"the config says \(channels, stride\) \[\(32, 4\), .* gives \[\(64, 4\), "):
        Wrapped(config)

"""Sources of weights: what is opened, what is refused, and what each message says."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.vitdense.weights.small_weights import SMALL, nano, read
from vitdense.contracts import BACKBONES, Backbone
from vitdense.errors import WeightsError

Fill = Callable[..., Backbone]


@pytest.mark.parametrize("name", ["vit_nano_patch8", "swin_nano"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin"])
def test_our_own_weights_come_back_from_a_file(name: str, suffix: str, fill: Fill, tmp_path: Path) -> None:
    ours = nano(name)
    path = tmp_path / f"weights.{suffix}"
    state = ours.state_dict()
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    again = fill(name, path, SMALL[name])
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[key])
    assert again.load_report is not None
    assert len(again.load_report.matched) == len(state)
    assert not again.load_report.left_out


WRAPPERS = ("state_dict", "model", "model_ema", "state_dict_ema", "ema", "teacher", "student", "params", "encoder")
PREFIXES = (
    "backbone.",
    "module.backbone.",
    "_orig_mod.backbone.",
    "teacher.backbone.",
    "model.backbone.",
    "encoder.",
    "image_encoder.",
    "visual.",
    "visual.trunk.",
    "vision_model.",
    "pretrained.model.",
)


@pytest.mark.parametrize("name", ["vit_nano_patch8", "swin_nano"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_mappings_around_the_tensors_are_taken_off(wrapper: str, name: str, fill: Fill) -> None:
    state = nano(name).state_dict()
    for wrapped in ({wrapper: state, "epoch": 3}, {wrapper: {"state_dict": state}}, {"state_dict": {wrapper: state}}):
        ours = fill(name, wrapped, SMALL[name])
        assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())


@pytest.mark.parametrize("name", ["vit_nano_patch8", "swin_nano"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_names_are_taken_off(prefix: str, name: str, fill: Fill) -> None:
    state = nano(name).state_dict()
    wrapped = {f"{prefix}{key}": tensor for key, tensor in state.items()}
    ours = fill(name, {**wrapped, "decode_head.conv.weight": torch.ones(1)}, SMALL[name])
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())
    assert ours.load_report is not None
    assert ours.load_report.left_out == ("decode_head.conv.weight",)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_names_of_wrappers_before_a_backbone_are_taken_out(prefix: str, fill: Fill) -> None:
    state = nano().state_dict()
    ours = fill("vit_nano_patch8", {f"{prefix}{key}": tensor for key, tensor in state.items()}, {})
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())


def test_names_of_wrappers_inside_a_backbone_are_taken_out(fill: Fill) -> None:
    state = nano().state_dict()
    wrapped = {key.replace(".attn.", "._checkpoint_wrapped_module.attn."): tensor for key, tensor in state.items()}
    ours = fill("vit_nano_patch8", wrapped, {})
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())


def test_averaged_weights_are_preferred_and_said(fill: Fill, tmp_path: Path) -> None:
    state = nano().state_dict()
    torch.save({"model": nano().state_dict(), "model_ema": {"module": state}, "args": 1}, tmp_path / "both.pth")
    ours = fill("vit_nano_patch8", tmp_path / "both.pth", {})
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())
    assert str(ours.load_report) == f"{tmp_path}/both.pth (model_ema) [timm]: 54 matched"


def test_a_folder_of_ours_is_read_below_its_prefix(tmp_path: Path, fill: Fill) -> None:
    state = nano("swin_nano").state_dict()
    save_file(
        {f"backbone.{k}": v for k, v in state.items()} | {"head.x": torch.ones(1)}, tmp_path / "model.safetensors"
    )
    ours = fill("swin_nano", tmp_path, SMALL["swin_nano"])
    assert ours.load_report is not None
    assert ours.load_report.family == "vitdense"
    assert ours.load_report.left_out == ("head.x",)


def test_a_run_says_how_its_backbone_was_built(tmp_path: Path, fill: Fill) -> None:
    state = {f"backbone.{key}": tensor for key, tensor in nano().state_dict().items()}
    save_file({**state, "head.x": torch.ones(1)}, tmp_path / "model.safetensors")
    recipe = tmp_path / "recipe.yaml"
    built = "layer_norm_eps: 1.0e-12, position_antialias: false, mean: [0.5, 0.5, 0.5], activation: silu"
    recipe.write_text(f"backbone: {{name: vit_nano_patch8, embed_dim: 64, drop_path: 0.3, num_heads: 2, {built}}}\n")
    ours = fill("vit_nano_patch8", tmp_path, {"activation": "gelu"})
    assert ours.config is not None
    options = ours.config.model_dump()
    assert (options["layer_norm_eps"], options["position_antialias"]) == (1e-12, False)
    assert (options["mean"], options["activation"], options["drop_path"]) == ((0.5, 0.5, 0.5), "gelu", 0.0)
    recipe.write_text("backbone: {num_heads: 4}")
    with pytest.raises(WeightsError, match="has 4 attention heads, and num_heads is 2 here"):
        read(tmp_path)
    recipe.write_text("backbone: [")
    with pytest.raises(WeightsError, match=r"recipe\.yaml can't be read as a recipe"):
        read(tmp_path)


def test_transformers_options_rank_below_the_users(tmp_path: Path) -> None:
    weights = read(_transformers_vit())
    assert weights.family == "transformers"
    assert weights.options == {
        "layer_norm_eps": 1e-12,
        "activation": "gelu",
        "position_antialias": False,
        "position_interpolation": "bicubic",
        "image_size": 64,
    }
    save_file(_transformers_vit(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"layer_norm_eps": 1e-5, "num_attention_heads": 2}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.4] * 3}))
    options = read(tmp_path).options
    assert options["layer_norm_eps"] == 1e-5
    assert options["mean"] == (0.5, 0.5, 0.5)
    assert options["std"] == (0.4, 0.4, 0.4)


def test_timms_pixel_statistics_are_kept(tmp_path: Path) -> None:
    save_file(nano().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
    options = read(tmp_path).options
    assert (options["mean"], options["std"]) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_another_number_of_heads_is_refused(tmp_path: Path) -> None:
    save_file(_transformers_vit(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    with pytest.raises(WeightsError, match="has 4 attention heads, and num_heads is 2 here"):
        read(tmp_path)


def test_activations_are_taken_over_or_refused(tmp_path: Path) -> None:
    save_file(_transformers_vit(), tmp_path / "model.safetensors")
    for theirs, ours in (("quick_gelu", "quick_gelu"), ("gelu_pytorch_tanh", "gelu_tanh"), ("silu", "silu")):
        (tmp_path / "config.json").write_text(json.dumps({"hidden_act": theirs}))
        assert read(tmp_path).options["activation"] == ours
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "relu"}))
    with pytest.raises(WeightsError, match="has hidden_act 'relu'; known here: gelu, "):
        read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "silu"}))
    with pytest.raises(WeightsError, match="was trained with activation 'silu'; known here: 'gelu'"):
        read(tmp_path, "swin_nano")


def test_vitdet_is_read_as_detectron_publishes_it(tmp_path: Path, fill: Fill) -> None:
    options = {"embed_dim": 48, "depth": 2, "num_heads": 3, "global_blocks": (1,)}
    ours = BACKBONES.create("vitdet_base_patch16", options).build()
    state = {key: tensor for key, tensor in ours.state_dict().items() if not key.startswith("norm.")}
    theirs = {**state, "pos_embed": torch.cat([torch.ones(1, 1, 48), state["pos_embed"]], dim=1)}
    arrays = {f"backbone.net.{key}": tensor.numpy() for key, tensor in theirs.items()}
    arrays["backbone.simfp_2.0.weight"] = np.ones(1, dtype=np.float32)
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": arrays}))
    again = fill("vitdet_base_patch16", tmp_path / "model_final.pkl", {**options, "final_norm": "none"})
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
    assert again.load_report is not None
    assert again.load_report.left_out == ("backbone.simfp_2.0.weight", "pos_embed[:, :1]")


def test_a_missing_part_is_named_by_its_fellows(fill: Fill) -> None:
    state = _transformers_vit()
    del state["layers.3.attention.k_proj.bias"]
    with pytest.raises(WeightsError) as caught:
        fill("vit_nano_patch8", state, {})
    assert "1 missing: blocks.3.attn.qkv.bias; 2 unexpected: " in str(caught.value)
    assert "layers.3.attention.q_proj.bias, layers.3.attention.v_proj.bias" in str(caught.value)


def _transformers_vit() -> dict[str, Tensor]:
    """Our nano under transformers' names, as files have them."""
    from transformers import ViTConfig, ViTModel

    model = ViTModel(
        ViTConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=256,
            image_size=64,
            patch_size=8,
        ),
        add_pooling_layer=False,
    )
    return {key: tensor.contiguous() for key, tensor in model.state_dict().items()}

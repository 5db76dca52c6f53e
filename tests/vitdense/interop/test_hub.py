"""Backbones on the Hub: folders with a card and a config, which come back with the same bits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vitdense
from vitdense.backbones import SwinConfig
from vitdense.errors import UserError, WeightsError
from vitdense.interop.blueprint import Blueprint
from vitdense.interop.hub import HubBackbone


@torch.no_grad()
@pytest.mark.parametrize("kind", ["swin", "plain", "timm"])
def test_a_saved_backbone_gives_the_same_bits(kind: str, make: Any, tmp_path: Path, odd_images: Tensor) -> None:
    backbone = make(kind, mean=(0.1, 0.2, 0.3)).eval()
    HubBackbone(backbone).save_pretrained(tmp_path)
    again = HubBackbone.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again(odd_images), backbone(odd_images), strict=True))
    assert again.backbone.levels == backbone.levels
    assert Blueprint.of(again.backbone) == Blueprint.of(backbone)
    assert (again.backbone.mean, again.backbone.std) == (backbone.mean, backbone.std)


def test_the_config_holds_name_options_and_adapter(make: Any, tmp_path: Path) -> None:
    HubBackbone(make("plain", drop_path=0.25)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["name"] == "vit_nano_patch8"
    assert (config["options"]["depth"], config["options"]["drop_path"]) == (2, 0.25)
    assert config["adapter"] == {"name": "simple_pyramid", "channels": 32, "norm_eps": 1e-6}
    assert "weights" not in config["options"]


def test_options_that_came_with_weights_are_written(make: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": make("swin").state_dict()}, tmp_path / "swin.pt")
    loaded = vitdense.create_backbone("swin_nano", weights=tmp_path / "swin.pt", layer_norm_eps=1e-3)
    HubBackbone(loaded).save_pretrained(tmp_path / "saved")
    again = HubBackbone.from_pretrained(tmp_path / "saved").backbone
    assert isinstance(again.config, SwinConfig)
    assert again.config.layer_norm_eps == 1e-3
    assert again.config.weights is None


def test_the_card_names_the_maps(make: Any, tmp_path: Path) -> None:
    HubBackbone(make("plain")).save_pretrained(tmp_path, model_card_kwargs={"repo_id": "me/mine"})
    card = (tmp_path / "README.md").read_text()
    assert "library_name: vitdense" in card
    assert "# vit_nano_patch8 with simple_pyramid" in card
    assert 'HubBackbone.from_pretrained("me/mine").backbone' in card
    assert "| 0 | 32 | 4 |\n| 1 | 32 | 8 |\n| 2 | 32 | 16 |\n| 3 | 32 | 32 |" in card
    assert "[0.485, 0.456, 0.406]" in card


@torch.no_grad()
def test_the_file_is_one_that_create_backbone_loads(make: Any, tmp_path: Path, odd_images: Tensor) -> None:
    backbone = make("swin").eval()
    HubBackbone(backbone).save_pretrained(tmp_path)
    again = vitdense.create_backbone("swin_nano", weights=tmp_path / "model.safetensors").eval()
    assert all(torch.equal(a, b) for a, b in zip(again(odd_images), backbone(odd_images), strict=True))


@torch.no_grad()
def test_a_loaded_backbone_can_be_saved_again(make: Any, tmp_path: Path, odd_images: Tensor) -> None:
    HubBackbone(make("plain")).save_pretrained(tmp_path / "one")
    once = HubBackbone.from_pretrained(tmp_path / "one")
    once.save_pretrained(tmp_path / "two")
    twice = HubBackbone.from_pretrained(tmp_path / "two")
    assert all(torch.equal(a, b) for a, b in zip(once(odd_images), twice(odd_images), strict=True))


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen"])
def test_weights_that_do_not_fit_are_an_error(fault: str, make: Any, tmp_path: Path) -> None:
    HubBackbone(make("swin")).save_pretrained(tmp_path)
    file, key = tmp_path / "model.safetensors", "norms.3.weight"
    state = load_file(file)
    if fault == "missing":
        del state[key]
    elif fault == "unexpected":
        key = "norms.4.weight"
        state[key] = torch.zeros(3)
    else:
        state[key] = torch.zeros(3)
    save_file(state, file)
    with pytest.raises(WeightsError, match=rf"model.safetensors doesn't fit swin_nano: (.|\n)*{key}"):
        HubBackbone.from_pretrained(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json: it was not saved by HubBackbone"):
        HubBackbone.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"describes no vitdense backbone: it has \['model_type'\]"):
        HubBackbone.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"name": "swin_nano", "options": {"windows": 3}}')
    with pytest.raises(UserError, match=r"swin_nano\.windows: unknown key, did you mean 'window'"):
        HubBackbone.from_pretrained(tmp_path)


def test_pushing_sends_what_saving_writes(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, list[str]] = {}

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> str:
            sent[repo_id] = sorted(path.name for path in folder_path.iterdir())
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert HubBackbone(make("swin")).push_to_hub("me/mine") == "url"
    assert sent == {"me/mine": ["README.md", "config.json", "model.safetensors"]}


def test_a_backbone_that_was_not_created_by_name_is_refused(make: Any) -> None:
    backbone = SwinConfig(embed_dim=16, depths=(1, 1), num_heads=(1, 1)).build()
    with pytest.raises(UserError, match=r"Swin doesn't know its name: make it with vitdense\.create_backbone"):
        HubBackbone(backbone)

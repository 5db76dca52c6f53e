"""open_clip's models on picture towers of timm and on ResNets: SigLIP's is ours, the others stay open_clip's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import vitdense
from vitdense.errors import WeightsError

SINGLE = 1e-5
Enliven = Callable[[nn.Module], nn.Module]
Apart = Callable[[list[Tensor], list[Tensor]], float]
TEXT: dict[str, Any] = {"context_length": 16, "vocab_size": 300, "width": 32, "heads": 4, "layers": 2}
SIGLIP = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}


@register_model
def vit_nano_patch8_siglip_40(pretrained: bool = False, **options: Any) -> nn.Module:
    """A small SigLIP tower that timm knows by name."""
    allowed = {key: options[key] for key in ("num_classes", "global_pool") if options.get(key) is not None}
    small: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8, "img_size": 40}
    model: Any = VisionTransformer(class_token=False, **small, **{"global_pool": "map", **allowed})
    model.pretrained_cfg = model.default_cfg = {"architecture": "vit_nano_patch8_siglip_40"}
    return model  # type: ignore[no-any-return]


VISIONS: dict[str, tuple[dict[str, Any], int]] = {
    "siglip": ({"timm_model_name": "vit_nano_patch8_siglip_40", "timm_pool": "map", "timm_proj": "none"}, 40),
    "a ResNet": ({"layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None}, 64),
    "convnext": ({"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"}, 160),
    "the trunk's own projection": ({"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None}, 160),
}


def tower(name: str, folder: Path, enliven: Enliven) -> tuple[Any, str]:
    """open_clip's model with this tower, which it then lists, and the folder where it lies."""
    vision, side = VISIONS[name]
    model = {
        "embed_dim": 24,
        "vision_cfg": {**vision, "image_size": side},
        "text_cfg": TEXT | (SIGLIP if name == "siglip" else {}),
        "custom_text": True,
    } | ({"init_logit_bias": -10.0} if name == "siglip" else {})
    title = "nano-" + name.replace(" ", "-").replace("'", "")
    (folder / f"{title}.json").write_text(json.dumps(model))
    open_clip.add_model_config(folder / f"{title}.json")
    theirs: Any = enliven(open_clip.create_model(title))
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": pixels}))
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    return theirs, title


@torch.no_grad()
@pytest.mark.parametrize("name", VISIONS)
def test_towers_equal_open_clip(name: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs, _ = tower(name, tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    side = VISIONS[name][1]
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    tokens = torch.randint(0, 300, (3, 16), generator=torch.Generator().manual_seed(1))
    shown = ours.normalise(images)
    assert ours.backbone.mean == (0.5, 0.5, 0.5)
    mine = [ours.encode_image(images, normalize=False), ours.encode_text(tokens, normalize=False)]
    assert apart(mine, [theirs.encode_image(shown), theirs.encode_text(tokens)]) < SINGLE
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert ours.preprocess.size == (side, side)
    assert (type(ours.backbone).__name__ == "ViT") == (name == "siglip")


@torch.no_grad()
def test_siglip_s_pictures_of_another_size(enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs, _ = tower("siglip", tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    images = torch.rand(2, 3, 53, 67, generator=torch.Generator().manual_seed(2))
    padded = nn.functional.pad(ours.normalise(images), (0, -67 % 8, 0, -53 % 8))
    with pytest.raises(AssertionError):
        theirs.encode_image(padded)
    theirs.visual.trunk.set_input_size(img_size=padded.shape[-2:])
    assert apart([ours.encode_image(images, normalize=False)], [theirs.encode_image(padded)]) < SINGLE


def test_a_tower_that_nobody_lists_is_refused(enliven: Enliven, tmp_path: Path) -> None:
    tower("a ResNet", tmp_path, enliven)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 25
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="has a picture tower that is a ResNet; taken here are ViTs"):
        vitdense.load_model(tmp_path)


def test_a_bare_file_of_such_a_tower_asks_for_its_name(enliven: Enliven, tmp_path: Path) -> None:
    theirs, title = tower("siglip", tmp_path, enliven)
    torch.save(theirs.state_dict(), tmp_path / "file.pt")
    with pytest.raises(WeightsError, match="says nothing of its picture tower"):
        vitdense.load_model(tmp_path / "file.pt")
    ours: Any = vitdense.load_model(tmp_path / "file.pt", [f"architecture={title}"])
    assert type(ours.backbone).__name__ == "ViT"


def test_timm_knows_the_small_tower() -> None:
    assert timm.is_model("vit_nano_patch8_siglip_40")

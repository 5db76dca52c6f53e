"""Our CLIP towers equal OpenAI's and open_clip's, transformers' and timm's, from what each of them writes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import build_model_from_openai_state_dict, resize_pos_embed
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

import vitdense
from vitdense.contracts import BACKBONES, Backbone
from vitdense.errors import WeightsError
from vitdense.weights import read_weights

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
Padded = Callable[[Tensor, int], Tensor]
Apart = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3}
OURS: dict[str, Any] = {**SMALL, "out_indices": (0, 2)}
STORED = (112, 112)
SIZES = [STORED, (250, 333), (64, 96)]


def outputs(ours: Backbone, images: Tensor) -> list[Tensor]:
    """All that a backbone gives: two maps, tokens, one vector."""
    tokens = ours.tokens(images)
    return [*ours(images), torch.cat([tokens.prefix, tokens.patches], dim=1), ours.embed(images)]


# ---------------------------------------------------------------- open_clip and OpenAI


def open_clip_model(size: tuple[int, int] = STORED, *, quick_gelu: bool = True) -> Any:
    vision = open_clip.CLIPVisionCfg(layers=3, width=48, head_width=16, patch_size=16, image_size=size)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=50, width=64, heads=1, layers=1)
    return open_clip.CLIP(24, vision, text, quick_gelu=quick_gelu).eval()


def open_clip_outputs(theirs: Any, images: Tensor) -> list[Tensor]:
    """Those of a network made for the size of the pictures, with its table of positions resized as open_clip does."""
    resized = open_clip_model((images.shape[2], images.shape[3])).to(images.dtype)
    state = dict(theirs.state_dict())
    resize_pos_embed(state, resized)
    resized.load_state_dict(state)
    tower = resized.visual
    tower.proj, tower.output_tokens = None, True
    maps = tower.forward_intermediates(images, indices=[0, 2], normalize_intermediates=True, intermediates_only=True)
    pooled, patches = tower(images)
    return [*maps["image_intermediates"], torch.cat([pooled[:, None], patches], dim=1), pooled]


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False])
def test_all_outputs_equal_open_clips(
    whole: bool, enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart
) -> None:
    theirs: Any = enliven(open_clip_model())
    ours = fill("clip_base_patch16", (theirs if whole else theirs.visual).state_dict(), OURS)
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        for size in SIZES:
            images = picture(*size).to(to)
            expected = open_clip_outputs(theirs.to(to), padded(images, 16))
            assert apart(outputs(ours.to(to), images), expected) < bound
    assert ours.load_report is not None
    left_out = set(ours.load_report.left_out)
    text = {"logit_scale", "text_projection", "positional_embedding", "transformer.resblocks.0.attn.in_proj_weight"}
    assert left_out >= text | {"visual.proj"} if whole else left_out == {"proj"}


@torch.no_grad()
@pytest.mark.parametrize("file", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
def test_open_clips_folder_tells_activation_and_statistics(
    file: str, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    theirs: Any = enliven(open_clip_model(quick_gelu=False))
    state = theirs.state_dict()
    save_file(state, tmp_path / file) if file.endswith("safetensors") else torch.save(state, tmp_path / file)
    told: dict[str, Any] = {
        "model_cfg": {"vision_cfg": {"width": 48, "head_width": 16}},
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    ours = fill("clip_base_patch16", tmp_path, OURS)
    images = picture(*STORED)
    theirs.visual.proj = None
    assert apart([ours.embed(images)], [theirs.visual(images)]) < SINGLE
    assert (ours.mean, ours.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    told["model_cfg"]["quick_gelu"] = True
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    assert apart([fill("clip_base_patch16", tmp_path, OURS).embed(images)], [theirs.visual(images)]) > 1e-3
    told["model_cfg"]["vision_cfg"]["head_width"] = 24
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    with pytest.raises(WeightsError, match="has 2 attention heads, and num_heads is 3 here"):
        fill("clip_base_patch16", tmp_path, OURS)


@torch.no_grad()
def test_openais_half_precision_state_loads(
    enliven: Enliven, fill: Fill, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    """Their files are of half precision and of QuickGELU, whatever the preset says."""
    vision = open_clip.CLIPVisionCfg(layers=2, width=128, patch_size=16, image_size=64)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=50, width=64, heads=1, layers=1)
    state = {key: tensor.half() for key, tensor in enliven(open_clip.CLIP(24, vision, text)).state_dict().items()}
    state |= {"input_resolution": torch.tensor(64), "context_length": torch.tensor(8), "vocab_size": torch.tensor(50)}
    torch.save(state, tmp_path / "ViT-B-16.pt")
    options = {"embed_dim": 128, "depth": 2, "num_heads": 2, "out_indices": (0, 1), "layer_scale": None}
    ours = fill("clip_huge_patch14", tmp_path / "ViT-B-16.pt", {**options, "patch_size": 16})
    theirs: Any = build_model_from_openai_state_dict(dict(state), cast_dtype=None).float()
    theirs.visual.proj = None
    images = picture(64, 64)
    assert apart([ours.embed(images)], [theirs.visual(images)]) < SINGLE
    assert {tensor.dtype for tensor in ours.state_dict().values()} == {torch.float32}


@pytest.mark.filterwarnings("ignore")
def test_openais_archives_of_code_are_refused_with_a_way_out(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(WeightsError, match=r"TorchScript archive.*torch\.save\(torch\.jit\.load\('ViT-B-32\.pt'\)"):
        read_weights(tmp_path / "ViT-B-32.pt", BACKBONES.create("clip_base_patch32"))


# ---------------------------------------------------------------- transformers


def transformers_config(**options: Any) -> CLIPVisionConfig:
    settings: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 192,
        "image_size": 112,
        "patch_size": 16,
    }
    return CLIPVisionConfig(**settings, **options)


def transformers_outputs(theirs: Any, images: Tensor) -> list[Tensor]:
    """Theirs norm the class token alone; here all tokens are normed, as open_clip's."""
    given = theirs(images, interpolate_pos_encoding=True, output_hidden_states=True)
    tokens = [theirs.post_layernorm(given.hidden_states[i]) for i in (1, 3)]
    grid = tuple(side // 16 for side in images.shape[2:])
    return [*(each[:, 1:].mT.unflatten(2, grid) for each in tokens), tokens[1], given.pooler_output]


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_all_outputs_equal_transformers(
    activation: str, enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart
) -> None:
    theirs = enliven(CLIPVisionModel(transformers_config(hidden_act=activation)))
    ours = fill("clip_base_patch16", theirs.state_dict(), {**OURS, "activation": activation})
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        for size in SIZES:
            images = picture(*size).to(to)
            expected = transformers_outputs(theirs.to(to), padded(images, 16))
            assert apart(outputs(ours.to(to), images), expected) < bound


@torch.no_grad()
def test_maps_without_norm_equal_transformers_hidden_states(
    enliven: Enliven, fill: Fill, picture: Picture, apart: Apart
) -> None:
    theirs: Any = enliven(CLIPVisionModel(transformers_config()))
    ours = fill("clip_base_patch16", theirs.state_dict(), {**OURS, "norm_maps": False})
    images = picture(*STORED)
    hidden = theirs(images, output_hidden_states=True).hidden_states
    assert apart(ours(images), [hidden[i][:, 1:].mT.unflatten(2, (7, 7)) for i in (1, 3)]) < SINGLE


@torch.no_grad()
@pytest.mark.parametrize("kind", [CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection])
def test_what_transformers_writes_loads_with_its_activation_and_epsilon(
    kind: Any, enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart, tmp_path: Path
) -> None:
    config: Any = transformers_config(hidden_act="gelu", layer_norm_eps=1e-3)
    if kind is CLIPModel:
        text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 50000}
        config = CLIPConfig(vision_config=config.to_dict(), text_config=text)
    theirs: Any = enliven(kind(config))
    theirs.save_pretrained(tmp_path)
    ours = fill("clip_base_patch16", tmp_path, OURS)
    images = picture(250, 333)
    tower = theirs if kind is CLIPVisionModel else theirs.vision_model
    assert apart(outputs(ours, images), transformers_outputs(tower, padded(images, 16))) < SINGLE
    assert ours.load_report is not None
    left_out = {key.split(".")[0] for key in ours.load_report.left_out}
    text_too = {"logit_scale", "text_model", "text_projection", "visual_projection"}
    assert left_out == {CLIPModel: text_too, CLIPVisionModel: set()}.get(kind, {"visual_projection"})


# ---------------------------------------------------------------- timm


def timm_clip(kind: str, **options: Any) -> Any:
    settings = {**SMALL, "patch_size": 16, "img_size": 112, "dynamic_img_size": True, "dynamic_img_pad": True}
    return timm.create_model(kind, **{**settings, **options})


def timm_outputs(theirs: Any, images: Tensor) -> list[Tensor]:
    maps = theirs.forward_intermediates(images, indices=[0, 2], norm=True, intermediates_only=True)
    features = theirs.forward_features(images)
    return [*maps, features, theirs.forward_head(features, pre_logits=True)]


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_all_outputs_equal_timms(activation: str, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart) -> None:
    name = f"vit_base_patch16_clip_{'quickgelu_' if activation == 'quick_gelu' else ''}224"
    theirs = enliven(timm_clip(name, num_classes=24))
    ours = fill("clip_base_patch16", theirs.state_dict(), {**OURS, "activation": activation})
    for size in SIZES:
        images = picture(*size)
        assert apart(outputs(ours, images), timm_outputs(theirs, images)) < SINGLE
    # timm resizes positions in float32, so that only the stored size is exact in float64.
    images = picture(*STORED).double()
    assert apart(outputs(ours.double(), images), timm_outputs(theirs.double(), images)) < DOUBLE
    assert ours.load_report is not None
    assert ours.load_report.left_out == ("head.weight", "head.bias")


@pytest.mark.parametrize(
    ("architecture", "record", "activation"),
    [
        ("vit_base_patch16_clip_quickgelu_224", {"tag": "openai"}, "quick_gelu"),
        ("vit_base_patch16_clip_224", {"tag": "openai"}, "quick_gelu"),
        ("vit_base_patch16_clip_224", {"tag": "metaclip_400m", "notes": ["natively QuickGELU, use ..."]}, "quick_gelu"),
        ("vit_base_patch16_clip_224", {"tag": "openai_ft_in1k"}, "gelu"),
        ("vit_base_patch16_clip_224", {"tag": "laion2b", "mean": [0.5] * 3, "std": [0.5] * 3}, "gelu"),
    ],
)
def test_timms_record_tells_what_the_weights_were_trained_with(
    architecture: str, record: dict[str, Any], activation: str, fill: Fill, tmp_path: Path
) -> None:
    save_file(timm_clip(architecture).state_dict(), tmp_path / "model.safetensors")
    content = {"architecture": architecture, "pretrained_cfg": record}
    (tmp_path / "config.json").write_text(json.dumps(content))
    ours = fill("clip_base_patch16", tmp_path, OURS)
    assert ours.config is not None
    assert ours.config.model_dump()["activation"] == activation
    assert ours.mean == tuple(record.get("mean", (0.48145466, 0.4578275, 0.40821073)))


# ---------------------------------------------------------------- and back


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("names", ["timm", "transformers"])
def test_it_goes_out_and_comes_back(
    activation: str, names: Any, enliven: Enliven, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    ours = vitdense.create_backbone("clip_base_patch16", **OURS, image_size=112, activation=activation)
    enliven(ours)
    report = vitdense.save_pretrained(ours, tmp_path, names=names)
    images = picture(*STORED)
    if names == "timm":
        assert not report.notes
        theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        expected = timm_outputs(theirs, images)
    else:
        theirs, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(loading[found] for found in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        expected = transformers_outputs(theirs.eval(), images)
    assert apart(outputs(ours, images), expected) < SINGLE
    again = vitdense.create_backbone("clip_base_patch16", weights=tmp_path, **OURS)
    state = again.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in ours.state_dict().items())
    assert again.config is not None
    assert again.config.model_dump()["activation"] == activation

"""Mask2Former under its authors' names: what transformers' conversion is undone to, and detectron2's ResNets."""

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

import vitdense
from heads import create_head
from vitdense.build import create_backbone
from vitdense.errors import WeightsError
from vitdense.model import Model

Apart = Callable[[list[Tensor], list[Tensor]], float]
Config: Any = Mask2FormerConfig
SMALL: dict[str, Any] = {
    "feature_size": 32,
    "mask_feature_size": 24,
    "num_attention_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "dim_feedforward": 48,
    "encoder_feedforward_dim": 40,
    "num_queries": 9,
}
PIXEL, PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
# By the modules of mask2former/modeling/pixel_decoder/msdeformattn.py and transformer_decoder/
# mask2former_transformer_decoder.py, from transformers' names of the same tensors.
HEAD = (
    (r"^model\.pixel_level_module\.decoder\.level_embed$", PIXEL + "transformer.level_embed"),
    (r"^model\.pixel_level_module\.decoder\.encoder\.", PIXEL + "transformer.encoder."),
    (r"^model\.pixel_level_module\.decoder\.input_projections\.", PIXEL + "input_proj."),
    (r"^model\.pixel_level_module\.decoder\.mask_projection\.", PIXEL + "mask_features."),
    (r"^model\.pixel_level_module\.decoder\.((?:adapter|layer)_\d)\.0\.", PIXEL + r"\1."),
    (r"^model\.pixel_level_module\.decoder\.((?:adapter|layer)_\d)\.1\.", PIXEL + r"\1.norm."),
    (r"(transformer\.encoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
    (r"(transformer\.encoder\.layers\.\d+\.)final_layer_norm\.", r"\1norm2."),
    (r"(transformer\.encoder\.layers\.\d+\.)fc", r"\1linear"),
    (r"^model\.transformer_module\.queries_features\.", PREDICTOR + "query_feat."),
    (r"^model\.transformer_module\.queries_embedder\.", PREDICTOR + "query_embed."),
    (r"^model\.transformer_module\.level_embed\.", PREDICTOR + "level_embed."),
    (r"^model\.transformer_module\.input_projections\.", PREDICTOR + "input_proj."),
    (r"^model\.transformer_module\.decoder\.layernorm\.", PREDICTOR + "decoder_norm."),
    (r"^.*mask_embedder\.(\d)\.0\.", PREDICTOR + r"mask_embed.layers.\1."),
    (r"^class_predictor\.", PREDICTOR + "class_embed."),
)
LAYERS = (
    ("cross_attn_layer_norm.", "transformer_cross_attention_layers.{}.norm."),
    ("cross_attn.", "transformer_cross_attention_layers.{}.multihead_attn."),
    ("self_attn_layer_norm.", "transformer_self_attention_layers.{}.norm."),
    ("self_attn.", "transformer_self_attention_layers.{}.self_attn."),
    ("final_layer_norm.", "transformer_ffn_layers.{}.norm."),
    ("fc", "transformer_ffn_layers.{}.linear"),
)
# By the modules of mask2former/modeling/backbone/swin.py.
SWIN = (
    (r"^.*\.embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
    (r"^.*\.embeddings\.norm\.", "backbone.patch_embed.norm."),
    (r"^.*\.swin\.encoder\.layers\.", "backbone.layers."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.relative_position_bias\.", ".attn."),
)


def authors_name(key: str) -> str:
    if match := re.match(r"model\.transformer_module\.decoder\.layers\.(\d+)\.(.*)", key):
        for theirs, put in LAYERS:
            if match[2].startswith(theirs):
                return PREDICTOR + put.format(match[1]) + match[2].removeprefix(theirs)
    if match := re.match(r".*hidden_states_norms\.stage(\d)\.(.*)", key):
        return f"backbone.norm{int(match[1]) - 1}.{match[2]}"
    for pattern, put in (*HEAD, *SWIN):
        key = re.sub(pattern, put, key)
    return key


def joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value in one tensor, as the authors' modules have them."""
    for key in [key for key in state if re.search(r"(\.attn\.q|\.q_proj)\.(weight|bias)$", key)]:
        parts = torch.cat([state.pop(re.sub(r"q(_proj)?\.(\w+)$", letter + r"\1.\2", key)) for letter in "qkv"])
        name = re.sub(r"\.attn\.q\.", ".attn.qkv.", key)
        state[re.sub(r"\.q_proj\.(\w+)$", r".in_proj_\1", name)] = parts
    return state


def original(theirs: Any) -> dict[str, Tensor]:
    state = {authors_name(key): value for key, value in theirs.state_dict().items()}
    idle = [key for key in state if ".swin.layernorm." in key or key.endswith("relative_position_index")]
    return joined({key: value for key, value in state.items() if key not in idle})


def alive(module: Any) -> Any:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            kind = name.rpartition(".")[2]
            if not tensor.is_floating_point() or "criterion" in name or name in ("mean", "std"):
                continue
            if kind == "running_var":
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                continue
            scale = 0.12 if tensor.ndim == 1 else tensor[0].numel() ** -0.5
            scale = 1.0 if "quer" in name and "proj" not in name else scale
            centre = 1.0 if tensor.ndim == 1 and kind == "weight" else 0.0
            tensor.copy_(centre + scale * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def transformers_model(width: int, classes: int) -> Any:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone: Any = SwinConfig
    swin = backbone(embed_dim=16, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=5, out_features=stages)
    config = Config(backbone_config=swin, hidden_dim=width, num_labels=classes, **SMALL)
    return alive(Mask2FormerForUniversalSegmentation(config))


def write_pickle(state: Mapping[str, Tensor], path: Path) -> Path:
    """As detectron2 publishes: arrays in a pickle, beside a few words."""
    content = {"model": {key: value.numpy() for key, value in state.items()}, "__author__": "somebody"}
    path.write_bytes(pickle.dumps(content))
    return path


@torch.no_grad()
@pytest.mark.parametrize(("width", "classes"), [(32, 6), (48, 133)])
def test_logits_on_swin_are_transformers(width: int, classes: int, apart: Apart, tmp_path: Path) -> None:
    theirs = transformers_model(width, classes)
    state = original(theirs)
    assert not [key for key in state if not key.startswith(("backbone.", "sem_seg_head.", "criterion."))]
    ours: Any = vitdense.load_model(write_pickle(state, tmp_path / "model_final.pkl"))
    images = torch.rand(2, 3, 107, 139, dtype=torch.float64)
    theirs, ours = theirs.double(), ours.double()
    expected = theirs(ours.normalise(images))
    assert expected.masks_queries_logits.std() > 0.3
    found = ours({"images": images})
    assert apart([found["logits"]], [expected.class_queries_logits]) < 1e-9
    assert apart([found["masks"]], [expected.masks_queries_logits]) < 1e-9
    coco = classes == 133
    assert ours.head.stuff == (set(range(80, 133)) if coco else set())
    assert (ours.inference.short_side, ours.inference.long_max) == ((800, 1333) if coco else (None, None))
    assert (ours.head.config.num_heads, ours.head.config.task) == (4, "panoptic")


# From torchvision's names to those of detectron2/modeling/backbone/resnet.py.
RESNET = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    *((rf"^layer{i}\.", f"res{i + 1}.") for i in range(1, 5)),
)


@torch.no_grad()
def test_resnets_are_detectron2s(apart: Apart, tmp_path: Path) -> None:
    network = create_backbone("timm/resnet18", out_indices=(1, 2, 3, 4), frozen_norm=True)
    options = {"channels": 32, "pixel_channels": 32, "mask_channels": 24, "num_heads": 4, "mlp_channels": 48,
               "encoder_mlp_channels": 40, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5}  # fmt: skip
    head = create_head("mask_transformer", network, num_classes=4, **options)
    model = alive(Model(network, head, classes=list("abcd"), palette=[(0, 0, 0)] * 4))
    state = {key: value for key, value in original(transformers_model(32, 6)).items() if key.startswith("criterion.")}
    body = {key.removeprefix("model."): value for key, value in network.state_dict().items()}
    for key, value in body.items():
        if key.endswith("num_batches_tracked"):
            continue
        for pattern, put in RESNET:
            key = re.sub(pattern, put, key)
        state[f"backbone.{key}"] = value
    assert "backbone.res3.0.shortcut.norm.running_mean" in state
    for key, value in head.state_dict().items():
        state[in_heads(key)] = value
    loaded: Any = vitdense.load_model(write_pickle(joined(state), tmp_path / "r18.pkl"), ["task=instance"])
    assert loaded.head.config.task == "instance"
    images = torch.rand(1, 3, 75, 98)
    found, expected = loaded({"images": images}), model({"images": images})
    for name in ("logits", "masks"):
        assert expected[name].std() > 0.05
        assert apart([found[name]], [expected[name]]) < 1e-6


def in_heads(key: str) -> str:
    """From our head's names to the authors', by way of transformers'."""
    key = re.sub(r"\.mlp\.fc", ".fc", key).replace(".o_proj.", ".out_proj.")
    key = re.sub(r"^pixel_decoder\.laterals\.(\d)", r"pixel_decoder.adapter_\1", key)
    key = re.sub(r"^pixel_decoder\.outputs\.(\d)", r"pixel_decoder.layer_\1", key)
    key = re.sub(r"_(\d)\.([01])\.", lambda each: f"_{int(each[1]) + 1}.{each[2]}.", key)
    key = re.sub(r"^pixel_decoder\.", "model.pixel_level_module.decoder.", key)
    key = re.sub(r"^decoder\.mask_embedder\.layers\.(\d)\.", r"mask_embedder.\1.0.", key)
    key = re.sub(r"^decoder\.(queries|level_embed|input_proj)", r"model.transformer_module.\1", key)
    return authors_name(re.sub(r"^decoder\.", "model.transformer_module.decoder.", key))


def test_what_does_not_belong_is_named(tmp_path: Path) -> None:
    state = original(transformers_model(32, 6))
    more = {**state, "sem_seg_head.predictor.more.weight": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"doesn't fit mask_transformer.*decoder\.more\.weight"):
        vitdense.load_model(write_pickle(more, tmp_path / "more.pkl"))
    less = {key: value for key, value in state.items() if "mask_features" not in key}
    with pytest.raises(WeightsError, match=r"lacks pixel_decoder\.mask_projection\.weight of its Mask2Former"):
        vitdense.load_model(write_pickle(less, tmp_path / "less.pkl"))
    stem = {**state, "backbone.stem.weight": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"stem\.weight"):
        vitdense.load_model(write_pickle(stem, tmp_path / "stem.pkl"))

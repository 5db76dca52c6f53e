"""Our DINOv3 equals its authors', timm's and transformers', from what each of them writes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import checkpoint_filter_fn
from torch import Tensor, nn
from transformers import AutoModel, DINOv3ViTBackbone, DINOv3ViTConfig, DINOv3ViTModel

import vitdense
from tests.vitdense.weights.dinov3_by_hand import Official
from vitdense.contracts import Backbone
from vitdense.errors import UserError, WeightsError

SINGLE, DOUBLE = 1e-5, 1e-9
# transformers multiplies by rounded frequencies where the others divide by rounded periods: in float64 too, they
# differ by what float32 rounds.
DOUBLE_OF_SINGLE = 1e-6
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
Padded = Callable[[Tensor, int], Tensor]
Apart = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3}
OURS: dict[str, Any] = {**SMALL, "out_indices": (0, 2)}
SIZES = [(112, 96), (250, 333), (64, 96)]
SIZE_NAMES = ["small", "small_plus", "7b"]  # plain, gated, gated without biases of queries and values


def outputs(ours: Backbone, images: Tensor) -> list[Tensor]:
    """All that a backbone gives: two maps, tokens, one vector."""
    tokens = ours.tokens(images)
    return [*ours(images), torch.cat([tokens.prefix, tokens.patches], dim=1), ours.embed(images)]


# ---------------------------------------------------------------- timm


def timm_dinov3(kind: str) -> Any:
    options = {**SMALL, "global_pool": "token", "dynamic_img_pad": True}
    return timm.create_model(kind, **options)


def timm_outputs(theirs: Any, images: Tensor) -> list[Tensor]:
    maps = theirs.forward_intermediates(images, indices=[0, 2], norm=True, intermediates_only=True)
    features = theirs.forward_features(images)
    return [*maps, features, theirs.forward_head(features, pre_logits=True)]


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "name", "adapted"),
    [
        ("vit_small_patch16_dinov3_qkvb", "dinov3_small_patch16", 0),
        ("vit_small_patch16_dinov3", "dinov3_small_patch16", 6),
        ("vit_small_plus_patch16_dinov3_qkvb", "dinov3_small_plus_patch16", 0),
        ("vit_huge_plus_patch16_dinov3", "dinov3_huge_plus_patch16", 6),
        ("vit_7b_patch16_dinov3", "dinov3_7b_patch16", 0),
    ],
)
def test_all_outputs_equal_timms(
    kind: str, name: str, adapted: int, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart
) -> None:
    theirs = enliven(timm_dinov3(kind))
    ours = fill(name, theirs.state_dict(), {**OURS, "mlp_ratio": 128 / 48} if "7b" in kind else OURS)
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        for size in SIZES:
            images = picture(*size).to(to)
            assert apart(outputs(ours.to(to), images), timm_outputs(theirs.to(to), images)) < bound
    # Where timm has no bias of queries and values, ours are zeros.
    assert ours.load_report is not None
    assert len(ours.load_report.adapted) == adapted
    assert all(key.endswith(("q_bias", "v_bias")) for key in ours.load_report.adapted)


# ---------------------------------------------------------------- transformers


def transformers_config(size: str) -> DINOv3ViTConfig:
    gated = size != "small"
    options: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 96 if size == "7b" else 192,
        "hidden_act": "silu" if gated else "gelu",
        "use_gated_mlp": gated,
        "query_bias": size != "7b",
        "value_bias": size != "7b",
        "num_register_tokens": 4,
        "out_features": ["stage1", "stage3"],
    }
    return DINOv3ViTConfig(**options)


def transformers_outputs(model: Any, backbone: Any, images: Tensor) -> list[Tensor]:
    tokens = model(images)
    return [*backbone(images).feature_maps, tokens.last_hidden_state, tokens.pooler_output]


@torch.no_grad()
@pytest.mark.parametrize("size_name", SIZE_NAMES)
def test_all_outputs_equal_transformers(
    size_name: str, enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart
) -> None:
    theirs: Any = enliven(DINOv3ViTModel(transformers_config(size_name)))
    backbone: Any = DINOv3ViTBackbone(theirs.config)
    backbone.eval().load_state_dict(theirs.state_dict())
    ours = fill(f"dinov3_{size_name}_patch16", theirs.state_dict(), OURS)
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE_OF_SINGLE)):
        for size in SIZES:
            images = picture(*size).to(to)
            expected = transformers_outputs(theirs.to(to), backbone.to(to), padded(images, 16))
            assert apart(outputs(ours.to(to), images), expected) < bound


@torch.no_grad()
@pytest.mark.parametrize("size_name", SIZE_NAMES)
def test_what_transformers_writes_loads_with_its_epsilon_and_statistics(
    size_name: str, enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart, tmp_path: Path
) -> None:
    config = transformers_config(size_name)
    config.layer_norm_eps = 1e-3
    theirs: Any = enliven(DINOv3ViTModel(config))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}')
    ours = fill(f"dinov3_{size_name}_patch16", tmp_path, OURS)
    images = picture(250, 333)
    assert apart([outputs(ours, images)[2]], [theirs(padded(images, 16)).last_hidden_state]) < SINGLE
    assert (ours.mean, ours.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    assert ours.load_report is not None
    assert ours.load_report.left_out == ("embeddings.mask_token",)


# ---------------------------------------------------------------- the authors


@torch.no_grad()
@pytest.mark.parametrize("size_name", SIZE_NAMES)
def test_all_outputs_equal_the_authors(
    size_name: str, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    """Their numbers are those of the periods that they store, rounded to bfloat16."""
    theirs = enliven(Official(size_name))
    torch.save(theirs.state_dict(), tmp_path / "dinov3.pth")
    ours = fill(f"dinov3_{size_name}_patch16", tmp_path / "dinov3.pth", OURS)
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        for size in SIZES:
            images = picture(*size).to(to)
            assert apart(outputs(ours.to(to), images), theirs.to(to)(images)) < bound
    assert ours.load_report is not None
    local = {f"local_cls_norm.{kind}" for kind in ("weight", "bias")} if size_name == "7b" else set()
    assert set(ours.load_report.left_out) == {"mask_token", "rope_embed.periods", *local}


@torch.no_grad()
def test_rounded_periods_give_other_numbers_than_computed_ones(
    enliven: Enliven, fill: Fill, picture: Picture, apart: Apart
) -> None:
    state = enliven(Official("small")).state_dict()
    images = picture(112, 96)
    stored = fill("dinov3_small_patch16", state, OURS)
    computed = fill("dinov3_small_patch16", state, {**OURS, "rope_periods": None})
    assert apart(outputs(stored, images), outputs(computed, images)) > 1e-4
    state["rope_embed.periods"] = 100.0 ** (torch.arange(4) / 4)
    exact = fill("dinov3_small_patch16", state, OURS)
    assert exact.config is not None
    assert exact.config.model_dump()["rope_periods"] is None


@torch.no_grad()
@pytest.mark.parametrize("size_name", ["small", "small_plus"])
def test_timm_reads_the_authors_names_as_we_do(
    size_name: str, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart
) -> None:
    state = enliven(Official(size_name)).state_dict()
    theirs = timm_dinov3(f"vit_{size_name}_patch16_dinov3_qkvb").eval()
    theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs))
    ours = fill(f"dinov3_{size_name}_patch16", state, {**OURS, "rope_periods": None})
    images = picture(250, 333)
    assert apart(outputs(ours, images), timm_outputs(theirs, images)) < SINGLE


def test_periods_of_another_base_are_refused(fill: Fill) -> None:
    state = Official("small").state_dict()
    state["rope_embed.periods"] = 10000.0 ** (torch.arange(4) / 4)
    with pytest.raises(WeightsError, match=r"rotary periods that are not DINOv3's: \[1\.0, 10\.0, 100"):
        fill("dinov3_small_patch16", state, OURS)


def test_a_network_of_another_kind_is_refused() -> None:
    """What these weights tell of their network can't be said of a plain one."""
    with pytest.raises(WeightsError, match=r"a mapping \[official\] doesn't fit vit_base_patch16: .* rope_periods"):
        vitdense.create_backbone("vit_base_patch16", weights=Official("small").state_dict(), **SMALL)


def test_a_bias_of_the_keys_is_refused(fill: Fill) -> None:
    state = Official("small").state_dict()
    state["blocks.1.attn.qkv.bias_mask"] = torch.ones(144)
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.qkv\.bias is not zero for the keys"):
        fill("dinov3_small_patch16", state, OURS)


@pytest.mark.parametrize(
    ("file", "mean"),
    [("dinov3_vitl16_pretrain_lvd1689m.pth", 0.485), ("dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", 0.43)],
)
def test_the_authors_models_for_satellites_have_their_own_statistics(
    file: str, mean: float, fill: Fill, tmp_path: Path
) -> None:
    torch.save(Official("small").state_dict(), tmp_path / file)
    assert fill("dinov3_small_patch16", tmp_path / file, OURS).mean[0] == mean


# ---------------------------------------------------------------- and back


@torch.no_grad()
@pytest.mark.parametrize("names", ["timm", "transformers"])
@pytest.mark.parametrize("size_name", SIZE_NAMES)
def test_it_goes_out_and_comes_back(
    size_name: str, names: Any, enliven: Enliven, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    ours = vitdense.create_backbone(f"dinov3_{size_name}_patch16", **OURS)
    enliven(ours)
    assert not vitdense.save_pretrained(ours, tmp_path, names=names).notes
    images = picture(112, 96)
    if names == "timm":
        theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        expected = timm_outputs(theirs, images)
    else:
        theirs, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(loading[found] for found in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        config = DINOv3ViTConfig.from_pretrained(tmp_path, out_features=["stage1", "stage3"])
        expected = transformers_outputs(
            theirs.eval(), DINOv3ViTBackbone.from_pretrained(tmp_path, config=config), images
        )
    assert apart(outputs(ours, images), expected) < SINGLE
    again = vitdense.create_backbone(f"dinov3_{size_name}_patch16", weights=tmp_path, **OURS)
    state = again.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in ours.state_dict().items())


def test_rounded_periods_are_noted_where_they_have_no_place(tmp_path: Path) -> None:
    periods = tuple((100.0 ** (torch.arange(4) / 4)).bfloat16().float().tolist())
    ours = vitdense.create_backbone("dinov3_small_patch16", **SMALL, rope_periods=periods)
    for names in ("timm", "transformers"):
        report = vitdense.save_pretrained(ours, tmp_path, names=names)
        assert report.notes == ("rotary periods are not rounded to bfloat16 there",)


def test_a_bias_of_the_keys_is_not_written(tmp_path: Path) -> None:
    ours = vitdense.create_backbone("dinov3_small_patch16", **SMALL, qkv_bias=True)
    with pytest.raises(UserError, match="its dinov3 has qkv_bias False or 'qv', and here it is True"):
        vitdense.save_pretrained(ours, tmp_path, names="timm")

"""Our DINOv2 equals its authors', timm's and transformers', from what each of them writes."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)

import vitdense
from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.layers.position import resize_positions
from vitdense.weights import read_weights

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
ByTimm = Callable[..., Path]
Picture = Callable[..., Tensor]
Padded = Callable[[Tensor, int], Tensor]
Apart = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3}
OURS: dict[str, Any] = {**SMALL, "out_indices": (0, 2)}
STORED = (112, 112)
SIZES = [STORED, (250, 333), (64, 96)]
KINDS = ["small_patch14", "small_patch14_reg", "giant_patch14", "giant_patch14_reg"]


def outputs(ours: Backbone, images: Tensor) -> list[Tensor]:
    """All that a backbone gives: two maps, tokens, one vector."""
    tokens = ours.tokens(images)
    return [*ours(images), torch.cat([tokens.prefix, tokens.patches], dim=1), ours.embed(images)]


# ---------------------------------------------------------------- timm


def timm_dinov2(kind: str) -> Any:
    name = f"vit_{kind.removesuffix('_reg')}_{'reg4_' if kind.endswith('_reg') else ''}dinov2"
    return timm.create_model(name, **SMALL, img_size=112, dynamic_img_size=True, dynamic_img_pad=True)


def timm_outputs(theirs: Any, images: Tensor) -> list[Tensor]:
    maps = theirs.forward_intermediates(images, indices=[0, 2], norm=True, intermediates_only=True)
    features = theirs.forward_features(images)
    return [*maps, features, theirs.forward_head(features, pre_logits=True)]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_all_outputs_equal_timms(
    kind: str, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart, by_timm: ByTimm
) -> None:
    theirs = enliven(timm_dinov2(kind))
    ours = fill(f"dinov2_{kind}", by_timm(theirs), OURS)
    for size in SIZES:
        images = picture(*size)
        assert apart(outputs(ours, images), timm_outputs(theirs, images)) < SINGLE
    # timm resizes positions in float32, so that only the stored size is exact in float64.
    images = picture(*STORED).double()
    assert apart(outputs(ours.double(), images), timm_outputs(theirs.double(), images)) < DOUBLE


# ---------------------------------------------------------------- transformers


def transformers_config(kind: str) -> Any:
    options: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 112,
        "patch_size": 14,
        "use_swiglu_ffn": kind.startswith("giant"),
        "out_features": ["stage1", "stage3"],
    }
    return (Dinov2WithRegistersConfig if kind.endswith("_reg") else Dinov2Config)(**options)


def transformers_outputs(model: Any, backbone: Any, images: Tensor) -> list[Tensor]:
    tokens = model(images)
    return [*backbone(images).feature_maps, tokens.last_hidden_state, tokens.pooler_output]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_all_outputs_equal_transformers(
    kind: str, enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart
) -> None:
    registers = kind.endswith("_reg")
    theirs: Any = enliven((Dinov2WithRegistersModel if registers else Dinov2Model)(transformers_config(kind)))
    backbone: Any = (Dinov2WithRegistersBackbone if registers else Dinov2Backbone)(theirs.config)
    backbone.eval().load_state_dict(theirs.state_dict())
    ours = fill(f"dinov2_{kind}", theirs.state_dict(), OURS)
    for size in SIZES:
        images = picture(*size)
        expected = transformers_outputs(theirs, backbone, padded(images, 14))
        assert apart(outputs(ours, images), expected) < SINGLE
    # transformers resizes positions in float32, so that only the stored size is exact in float64.
    images = picture(*STORED).double()
    expected = transformers_outputs(theirs.double(), backbone.double(), images)
    assert apart(outputs(ours.double(), images), expected) < DOUBLE


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_writes_loads_with_its_epsilon(
    kind: str, enliven: Enliven, fill: Fill, picture: Picture, padded: Padded, apart: Apart, tmp_path: Path
) -> None:
    config = transformers_config(kind)
    config.layer_norm_eps = 1e-3
    whole = Dinov2WithRegistersForImageClassification if kind.endswith("_reg") else Dinov2ForImageClassification
    theirs: Any = enliven(whole(config))
    theirs.save_pretrained(tmp_path)
    ours = fill(f"dinov2_{kind}", tmp_path, OURS)
    images = picture(250, 333)
    expected = theirs.base_model(padded(images, 14)).last_hidden_state
    assert apart([outputs(ours, images)[2]], [expected]) < SINGLE
    report = ours.load_report
    assert report is not None
    assert sorted(key.rpartition(".")[2] for key in report.left_out) == ["bias", "mask_token", "weight"]


# ---------------------------------------------------------------- the authors


class OfficialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(48, 2 * 128), nn.Linear(128, 48)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * value)
        return out


class Official(nn.Module):
    """The authors' network after its paper, under their names."""

    def __init__(self, kind: str, *, chunks: int) -> None:
        super().__init__()
        self.registers = kind.endswith("_reg")
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, 48)), nn.Parameter(torch.zeros(1, 48))
        self.pos_embed = nn.Parameter(torch.zeros(1, 65, 48))
        if self.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, 4, 48))
        self.patch_embed = PatchEmbed(112, 14, embed_dim=48, strict_img_size=False, dynamic_img_pad=True)
        blocks = [Block(48, 3, qkv_bias=True, init_values=0.1) for _ in range(3)]
        if kind.startswith("giant"):
            for block in blocks:
                block.mlp = OfficialGate()
        # A training keeps its blocks in chunks, each with a stand-in for every block before it.
        groups = [[nn.Identity()] * i + [block] for i, block in enumerate(blocks)] if chunks else []
        self.blocks = nn.ModuleList([nn.Sequential(*group) for group in groups] if chunks else blocks)
        self.norm = nn.LayerNorm(48, eps=1e-6)

    def forward(self, images: Tensor) -> list[Tensor]:
        grid = tuple(math.ceil(side / 14) for side in images.shape[2:])
        table = self.pos_embed[:, 1:].reshape(1, 8, 8, 48)
        if grid != (8, 8):
            table = (
                F.interpolate(table.permute(0, 3, 1, 2), size=grid, mode="bicubic", antialias=True).permute(0, 2, 3, 1)
                if self.registers
                else resized_by_hand(table, (grid[0], grid[1]), 0.1)
            )
        x = torch.cat([self.cls_token.expand(2, -1, -1), self.patch_embed(images)], dim=1)
        x = x + torch.cat([self.pos_embed[:, :1], table.flatten(1, 2)], dim=1)
        if self.registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(2, -1, -1), x[:, 1:]], dim=1)
        kept = []
        for block in self.blocks:
            x = block(x)
            kept.append(self.norm(x))
        patches = (kept[i][:, 5 if self.registers else 1 :] for i in (0, 2))
        return [*(part.mT.unflatten(2, grid) for part in patches), kept[2], kept[2][:, 0]]


def resized_by_hand(table: Tensor, size: tuple[int, int], offset: float) -> Tensor:
    """Bicubic with cells at (i + 0.5) / scale - 0.5, where scale is that of a grid larger by `offset` (float64)."""

    def axis(stored: int, wanted: int) -> Tensor:
        place = (torch.arange(wanted, dtype=torch.float64) + 0.5) * stored / (wanted + offset) - 0.5
        matrix = torch.zeros(wanted, stored, dtype=torch.float64)
        for i, at in enumerate(place.tolist()):
            for j in range(math.floor(at) - 1, math.floor(at) + 3):
                t = abs(at - j)  # Keys' kernel with a = -0.75
                weight = 1.25 * t**3 - 2.25 * t**2 + 1 if t <= 1 else -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
                matrix[i, min(max(j, 0), stored - 1)] += weight
        return matrix

    down, across = axis(table.shape[1], size[0]), axis(table.shape[2], size[1])
    return torch.einsum("hi,wj,bijc->bhwc", down, across, table.double()).to(table.dtype)


@pytest.mark.parametrize("size", [(18, 24), (5, 7), (8, 9), (37, 3)])
def test_the_authors_offset_is_that_of_a_slightly_larger_grid(size: tuple[int, int]) -> None:
    table = torch.randn(1, 8, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = resize_positions(table, size, antialias=False, offset=0.1)
    assert float((ours - resized_by_hand(table, size, 0.1)).abs().max()) < DOUBLE
    assert float((ours - resize_positions(table, size, antialias=False)).abs().max()) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("chunks", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_all_outputs_equal_the_authors(
    kind: str, chunks: int, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    theirs = enliven(Official(kind, chunks=chunks))
    state = theirs.state_dict()
    torch.save({"teacher": {f"backbone.{key}": state[key] for key in state}} if chunks else state, tmp_path / "w.pth")
    ours = fill(f"dinov2_{kind}", tmp_path / "w.pth", OURS)
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        for size in SIZES:
            images = picture(*size).to(to)
            assert apart(outputs(ours.to(to), images), theirs.to(to)(images)) < bound
    assert ours.load_report is not None
    assert [key.rpartition(".")[2] for key in ours.load_report.left_out] == ["mask_token"]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_timm_reads_the_authors_names_as_we_do(
    kind: str, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart
) -> None:
    state = enliven(Official(kind, chunks=0)).state_dict()
    theirs = timm_dinov2(kind).eval()
    theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs), strict=False)
    images = picture(*STORED)
    assert apart(outputs(fill(f"dinov2_{kind}", state, OURS), images), timm_outputs(theirs, images)) < SINGLE


# ---------------------------------------------------------------- and back


@torch.no_grad()
@pytest.mark.parametrize("names", ["timm", "transformers"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_out_and_comes_back(
    kind: str, names: Any, enliven: Enliven, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    ours = vitdense.create_backbone(f"dinov2_{kind}", **OURS, image_size=112)
    enliven(ours)
    report = vitdense.save_pretrained(ours, tmp_path, names=names)
    assert bool(report.notes) == (not kind.endswith("_reg"))  # without registers, the authors' offset
    images = picture(*STORED)
    if names == "timm":
        theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        expected = timm_outputs(theirs, images)
    else:
        theirs, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(loading[found] for found in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        backbone = Dinov2WithRegistersBackbone if kind.endswith("_reg") else Dinov2Backbone
        config = type(theirs.config).from_pretrained(tmp_path, out_features=["stage1", "stage3"])
        expected = transformers_outputs(theirs.eval(), backbone.from_pretrained(tmp_path, config=config), images)
    assert apart(outputs(ours, images), expected) < SINGLE
    again = vitdense.create_backbone(f"dinov2_{kind}", weights=tmp_path, **OURS)
    state = again.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in ours.state_dict().items())


def test_a_network_without_layer_scale_is_not_written_as_dinov2(tmp_path: Path) -> None:
    ours = vitdense.create_backbone("dinov2_giant_patch14", **SMALL, layer_scale=None)
    with pytest.raises(UserError, match="dinov2 needs layer_scale"):
        vitdense.save_pretrained(ours, tmp_path, names="transformers")


def test_positions_are_resized_as_the_publisher_does(by_timm: ByTimm) -> None:
    config = vitdense.create_backbone("dinov2_small_patch14", **SMALL, image_size=112).config
    assert config is not None
    assert config.model_dump()["position_offset"] == 0.1
    told = read_weights(Dinov2Model(transformers_config("small_patch14")).state_dict(), config).options
    assert (told["position_antialias"], told["position_offset"]) == (False, 0.0)
    told = read_weights(by_timm(timm_dinov2("small_patch14")), config).options
    assert (told["position_antialias"], told["position_offset"]) == (True, 0.0)

"""Our EVA-02 equals its authors' and timm's, in classification, in pretraining and in CLIP."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

import vitdense
from vitdense.contracts import Backbone
from vitdense.errors import UserError

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
Apart = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3}
OURS: dict[str, Any] = {**SMALL, "out_indices": (0, 2)}
KINDS = {
    "eva02_tiny_patch14": "eva02_tiny_patch14_224",
    "eva02_base_patch14": "eva02_base_patch14_224",
    "eva02_base_patch16_clip": "eva02_base_patch16_clip_224",
    "eva02_large_patch14_clip": "eva02_large_patch14_clip_224",
}


def outputs(ours: Backbone, images: Tensor) -> list[Tensor]:
    """All that a backbone gives: two maps, tokens, one vector."""
    tokens = ours.tokens(images)
    return [*ours(images), torch.cat([tokens.prefix, tokens.patches], dim=1), ours.embed(images)]


def timm_eva(kind: str, **options: Any) -> Any:
    return timm.create_model(kind, **{**SMALL, "dynamic_img_size": True, "dynamic_img_pad": True, **options})


def timm_outputs(theirs: Any, images: Tensor) -> list[Tensor]:
    maps = theirs.forward_intermediates(images, indices=[0, 2], norm=True, intermediates_only=True)
    features = theirs.forward_features(images)
    return [*maps, features, theirs.forward_head(features, pre_logits=True)]


# ---------------------------------------------------------------- timm


@torch.no_grad()
@pytest.mark.parametrize("size", [112, 224])
@pytest.mark.parametrize("name", KINDS)
def test_all_outputs_equal_timms(
    name: str, size: int, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart
) -> None:
    """The table of positions grows with the size of training; the span of the angles stays."""
    theirs = enliven(timm_eva(KINDS[name], img_size=size))
    ours = fill(name, theirs.state_dict(), OURS)
    for images in (picture(size, size), picture(250, 333), picture(64, 96)):
        assert apart(outputs(ours, images), timm_outputs(theirs, images)) < SINGLE
    # timm resizes positions in float32, so that only the stored size is exact in float64.
    images = picture(size, size).double()
    assert apart(outputs(ours.double(), images), timm_outputs(theirs.double(), images)) < DOUBLE


@torch.no_grad()
def test_angles_of_a_network_trained_at_another_size_span_the_same(
    enliven: Enliven, fill: Fill, picture: Picture, apart: Apart
) -> None:
    theirs = enliven(timm_eva("eva02_base_patch14_448"))
    ours = fill("eva02_base_patch14", theirs.state_dict(), OURS)
    images = picture(448, 448, batch=1)
    assert apart(outputs(ours, images), timm_outputs(theirs, images)) < SINGLE
    assert ours.config is not None
    told = ours.config.model_dump()
    assert (told["image_size"], told["rope_grid"]) == (448, 16)


@torch.no_grad()
def test_a_pretrained_network_norms_its_tokens(
    enliven: Enliven, fill: Fill, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    theirs = enliven(timm_eva("eva02_base_patch14_224", img_size=112, use_fc_norm=False))
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = fill("eva02_base_patch14", tmp_path / "weights.safetensors", OURS)
    images = picture(250, 333)
    assert apart(outputs(ours, images), timm_outputs(theirs, images)) < SINGLE


@torch.no_grad()
def test_the_tower_of_open_clip_equals_ours(
    enliven: Enliven, fill: Fill, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    tower = TimmModel("eva02_base_patch16_clip_224", embed_dim=24, image_size=112, pool="token", proj=None)
    tower.trunk = timm_eva("eva02_base_patch16_clip_224", img_size=112, num_classes=24)
    text = open_clip.CLIPTextCfg(vocab_size=50, width=32, heads=2, layers=1)
    whole = open_clip.CustomTextCLIP(24, open_clip.CLIPVisionCfg(layers=1, width=64, image_size=32), text)
    whole.visual = tower
    enliven(whole)
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "epoch_1.pt")
    ours = fill("eva02_base_patch16_clip", tmp_path / "epoch_1.pt", OURS)
    images = picture(112, 112)
    assert apart(outputs(ours, images), timm_outputs(tower.trunk, images)) < SINGLE
    assert apart([tower.trunk.head(ours.embed(images))], [tower(images)]) < SINGLE
    assert ours.load_report is not None
    left_out = {key.split(".")[0] for key in ours.load_report.left_out}
    assert left_out == {"text", "logit_scale", "visual"}
    assert {key for key in ours.load_report.left_out if key.startswith("visual")} == {
        "visual.trunk.head.weight",
        "visual.trunk.head.bias",
    }


# ---------------------------------------------------------------- the authors


class Rope(nn.Module):
    """The angles of one size, in cells of a grid of 16, kept in the checkpoint."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        steps = torch.outer(torch.arange(cells) / cells * 16, 10000.0 ** -(torch.arange(4) / 4))  # (cells, 4)
        steps = steps.repeat_interleave(2, dim=1)
        down, across = steps[:, None].expand(-1, cells, -1), steps[None].expand(cells, -1, -1)
        angles = torch.cat([down, across], dim=2).flatten(0, 1)  # (cells**2, 16)
        self.freqs_cos, self.freqs_sin = nn.Buffer(angles.cos()), nn.Buffer(angles.sin())

    def forward(self, heads: Tensor) -> Tensor:
        pairs = torch.unflatten(heads, -1, (8, 2))
        turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
        return heads * self.freqs_cos + turned * self.freqs_sin


class OfficialAttention(nn.Module):
    def __init__(self, rope: Rope, *, whole: bool, norm: bool) -> None:
        super().__init__()
        self.whole, self.rope = whole, rope
        if whole:
            self.qkv = nn.Linear(48, 144, bias=False)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(48, 48, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(48)), nn.Parameter(torch.zeros(48))
        self.inner_attn_ln: nn.Module = nn.LayerNorm(48, eps=1e-6) if norm else nn.Identity()
        self.proj = nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.qkv(x).chunk(3, dim=-1) if self.whole else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (part.unflatten(-1, (3, 16)).transpose(1, 2) for part in (kept[0] + self.q_bias, *kept[1:]))
        v = v + self.v_bias.reshape(3, 1, 16)
        q, k = (torch.cat([part[:, :, :1], self.rope(part[:, :, 1:])], dim=2) for part in (q, k))
        mixed = ((q @ k.mT / 4).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        out: Tensor = self.proj(self.inner_attn_ln(mixed))
        return out


class OfficialMlp(nn.Module):
    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        if whole:
            self.w12 = nn.Linear(48, 256)
        else:
            self.w1, self.w2 = nn.Linear(48, 128), nn.Linear(48, 128)
        self.ffn_ln: nn.Module = nn.Identity() if whole else nn.LayerNorm(128, eps=1e-6)
        self.w3 = nn.Linear(128, 48)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1) if self.whole else (self.w1(x), self.w2(x))
        out: Tensor = self.w3(self.ffn_ln(F.silu(gate) * value))
        return out


class OfficialBlock(nn.Module):
    def __init__(self, rope: Rope, *, whole: bool, norm: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(48, eps=1e-6), nn.LayerNorm(48, eps=1e-6)
        self.attn, self.mlp = OfficialAttention(rope, whole=whole, norm=norm), OfficialMlp(whole=whole)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Official(nn.Module):
    """The authors' network after its paper, under their names."""

    def __init__(self, name: str, *, image_size: int = 112) -> None:
        super().__init__()
        patch = 16 if "patch16" in name else 14
        clip, cells = name.endswith("_clip"), image_size // patch
        self.patch_embed = PatchEmbed(image_size, patch, embed_dim=48)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 48))
        if not clip:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, 48))
        self.pos_embed = nn.Parameter(torch.zeros(1, cells**2 + 1, 48))
        self.rope = Rope(cells)
        self.blocks = nn.ModuleList(OfficialBlock(self.rope, whole="tiny" in name, norm=clip) for _ in range(3))
        self.norm: nn.Module = nn.LayerNorm(48, eps=1e-6) if clip else nn.Identity()
        self.fc_norm: nn.Module = nn.Identity() if clip else nn.LayerNorm(48, eps=1e-6)
        self.head = nn.Linear(48, 10)
        self.clip = clip

    def forward(self, images: Tensor) -> list[Tensor]:
        x = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), self.patch_embed(images)], dim=1)
        x = x + self.pos_embed
        kept = []
        for block in self.blocks:
            x = block(x)
            kept.append(self.norm(x))
        cells = math.isqrt(x.shape[1] - 1)
        embedded = kept[2][:, 0] if self.clip else self.fc_norm(kept[2][:, 1:].mean(dim=1))
        return [*(kept[i][:, 1:].mT.unflatten(2, (cells, cells)) for i in (0, 2)), kept[2], embedded]


@torch.no_grad()
@pytest.mark.parametrize("image_size", [112, 224])
@pytest.mark.parametrize("name", KINDS)
def test_all_outputs_equal_the_authors(
    name: str, image_size: int, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    theirs = enliven(Official(name, image_size=image_size))
    torch.save({"model": theirs.state_dict()}, tmp_path / "eva02.pt")
    ours = fill(name, tmp_path / "eva02.pt", OURS)
    images = picture(image_size, image_size)
    # Their angles are in float32 whatever the precision, so that float64 would tell nothing.
    assert apart(outputs(ours, images), theirs(images)) < SINGLE
    assert ours.load_report is not None
    left_out = {key.split(".")[0] for key in ours.load_report.left_out}
    assert left_out == {"head", "rope", "blocks"} | (set() if "clip" in name else {"mask_token"})
    assert all(".rope." in key for key in ours.load_report.left_out if key.startswith("blocks"))


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_timm_reads_the_authors_names_as_we_do(
    name: str, enliven: Enliven, fill: Fill, picture: Picture, apart: Apart
) -> None:
    state = enliven(Official(name)).state_dict()
    theirs = timm_eva(KINDS[name], img_size=112, num_classes=10).eval()
    theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs))
    images = picture(250, 333)
    assert apart(outputs(fill(name, state, OURS), images), timm_outputs(theirs, images)) < SINGLE


@torch.no_grad()
def test_the_authors_clip_gives_its_tower(enliven: Enliven, fill: Fill, picture: Picture, apart: Apart) -> None:
    tower = enliven(Official("eva02_large_patch14_clip"))
    whole = {f"visual.{key}": tensor for key, tensor in tower.state_dict().items()}
    whole |= {"logit_scale": torch.ones(()), "text.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(6, 2)}
    ours = fill("eva02_large_patch14_clip", whole, OURS)
    images = picture(112, 112)
    assert apart(outputs(ours, images), tower(images)) < SINGLE
    assert ours.load_report is not None
    assert {"logit_scale", "visual.head.weight"} < set(ours.load_report.left_out)


# ---------------------------------------------------------------- and back


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_it_goes_out_and_comes_back(
    name: str, enliven: Enliven, picture: Picture, apart: Apart, tmp_path: Path
) -> None:
    ours = vitdense.create_backbone(name, **OURS, image_size=112)
    enliven(ours)
    vitdense.save_pretrained(ours, tmp_path, names="timm")
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    for size in ((112, 112), (250, 333)):
        images = picture(*size)
        assert apart(outputs(ours, images), timm_outputs(theirs, images)) < SINGLE
    again = vitdense.create_backbone(name, weights=tmp_path, **OURS)
    state = again.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in ours.state_dict().items())


def test_transformers_has_no_such_network(tmp_path: Path) -> None:
    ours = vitdense.create_backbone("eva02_tiny_patch14", **SMALL)
    with pytest.raises(UserError, match="eva02_tiny_patch14 can't be written for transformers"):
        vitdense.save_pretrained(ours, tmp_path, names="transformers")

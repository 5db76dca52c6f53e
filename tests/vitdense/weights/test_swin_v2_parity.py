"""Our Swin v2 equals transformers', torchvision's and timm's from their own weights, and goes back out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from transformers import AutoModel, Swinv2Backbone, Swinv2Config, Swinv2ForImageClassification, Swinv2Model

from vitdense.contracts import Backbone
from vitdense.weights import save_pretrained

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
SMALL: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window": 4, "image_size": 64}
SIZES = [(128, 128), (250, 333), (64, 96)]


def transformers_config(**options: Any) -> Swinv2Config:
    return Swinv2Config(  # type: ignore[call-arg]  # out_features is a property, which their stubs leave out
        image_size=64,
        embed_dim=16,
        depths=[2, 2, 2],
        num_heads=[1, 2, 4],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3"],
        **options,
    )


def timm_swin(size: tuple[int, int], **options: Any) -> Any:
    shape = {key: value for key, value in SMALL.items() if key not in ("window", "image_size")}
    return timm.create_model(
        "swinv2_tiny_window8_256", img_size=size, window_size=4, num_classes=3, drop_path_rate=0.0, **shape, **options
    )


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert max(float(b.abs().mean()) for b in theirs) > 0.3, "the reference carries no signal"
    return max(float((a - b).abs().max() / b.abs().mean().clamp(min=1)) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("pretrained", [(0, 0, 0), (3, 3, 2)])
@pytest.mark.parametrize("size", SIZES)
def test_maps_equal_transformers_at_any_size(
    size: tuple[int, int], pretrained: tuple[int, ...], enliven: Enliven, fill: Fill, picture: Picture
) -> None:
    theirs: Any = enliven(Swinv2Backbone(transformers_config(pretrained_window_sizes=list(pretrained))))
    ours = fill("swinv2_tiny", theirs.state_dict(), {**SMALL, "pretrained_windows": pretrained})
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        images = picture(*size).to(to)
        ours, theirs = ours.to(to), theirs.to(to)
        assert apart(ours(images), list(theirs(images).feature_maps)) < bound


@torch.no_grad()
@pytest.mark.parametrize("kind", [Swinv2Model, Swinv2ForImageClassification])
def test_what_save_pretrained_writes_loads(
    kind: Any, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(kind(transformers_config(pretrained_window_sizes=[3, 3, 2])))
    theirs.save_pretrained(tmp_path)
    told = {key: value for key, value in SMALL.items() if key not in ("window", "image_size")}
    ours = fill("swinv2_tiny", tmp_path, told)
    inner = theirs.swinv2 if kind is Swinv2ForImageClassification else theirs
    for size in SIZES:
        images = picture(*size)
        out = inner(images)
        expected = [out.last_hidden_state, out.pooler_output]
        assert apart([ours.tokens(images).patches, ours.embed(images)], expected) < SINGLE


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_maps_equal_torchvisions_at_any_size(
    size: tuple[int, int], enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(
        SwinTransformer(
            [4, 4],
            16,
            [2, 2, 2],
            [1, 2, 4],
            [4, 4],
            stochastic_depth_prob=0.0,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        )
    )
    for name, parameter in theirs.named_parameters():
        if name.endswith("attn.qkv.bias"):  # torchvision sets k's part to zero in every forward pass
            parameter[len(parameter) // 3 : 2 * len(parameter) // 3] = 0
    torch.save({"model": theirs.state_dict()}, tmp_path / "swin.pth")
    told = {key: value for key, value in SMALL.items() if key != "image_size"}
    ours = fill("swinv2_tiny", tmp_path / "swin.pth", told)
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        images = picture(*size).to(to)
        ours, theirs = ours.to(to), theirs.to(to)
        x, dense = nn.functional.pad(images, (0, -size[1] % 4, 0, -size[0] % 4)), []
        for i, part in enumerate(theirs.features):
            x = part(x)
            if i % 2:
                dense.append(x.permute(0, 3, 1, 2))
        assert apart([*ours(images), ours.embed(images)], [*dense, theirs.norm(x).mean((1, 2))]) < bound


@torch.no_grad()
@pytest.mark.parametrize(("size", "order"), [((128, 128), "pad_roll"), ((100, 140), "roll_pad")])
def test_maps_equal_timms(
    size: tuple[int, int], order: str, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs = enliven(timm_swin(size, always_partition=True))
    ours = fill("swinv2_tiny", theirs.state_dict(), {**SMALL, "image_size": 1024, "window_order": order})
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        images = picture(*size).to(to)
        ours, judge = ours.to(to), timm_swin(size, always_partition=True).to(to).eval()
        judge.load_state_dict(theirs.state_dict())
        maps = judge.forward_intermediates(images, norm=False, intermediates_only=True)
        assert apart(ours(images), maps) < bound


@torch.no_grad()
def test_the_authors_names_load(enliven: Enliven, fill: Fill, picture: Picture) -> None:
    theirs: Any = enliven(timm_swin((64, 64)))
    official = {}
    for key, tensor in theirs.state_dict().items():
        stage, _, rest = key.removeprefix("layers.").partition(".downsample.")
        official[f"layers.{int(stage) - 1}.downsample.{rest}" if rest else key] = tensor
    official["layers.0.blocks.0.attn.relative_coords_table"] = torch.zeros(1, 7, 7, 2)
    official["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    ours = fill("swinv2_tiny", {"model": official}, SMALL)
    assert ours.load_report is not None
    assert ours.load_report.family == "official"
    images = picture(64, 64)
    assert apart(ours(images), theirs.forward_intermediates(images, norm=False, intermediates_only=True)) < SINGLE


@torch.no_grad()
@pytest.mark.parametrize("names", ["timm", "transformers"])
def test_exported_weights_give_our_numbers_elsewhere(
    names: Any, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    ours = fill("swinv2_tiny", enliven(timm_swin((64, 64))).state_dict(), SMALL)
    save_pretrained(ours, tmp_path, names)
    images = picture(64, 64)
    if names == "timm":
        judge: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        expected = judge.forward_features(images).flatten(1, 2)
    else:
        judge = AutoModel.from_pretrained(tmp_path).eval()
        expected = judge(images).last_hidden_state
    assert apart([ours.tokens(images).patches], [expected]) < SINGLE
    back = fill("swinv2_tiny", tmp_path, SMALL)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name

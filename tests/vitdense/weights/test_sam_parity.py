"""Our SAM encoder and ViTDet equal timm's and transformers', windows that don't divide included, and go back out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import AutoModel, SamConfig, SamModel, SamVisionConfig, SamVisionModel, VitDetBackbone, VitDetConfig

from vitdense.contracts import Backbone
from vitdense.weights import save_pretrained

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "window": 3, "global_blocks": (1,), "out_indices": (0, 1, 2)}
SAM = {**SMALL, "neck_channels": 16}
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 80,
    "window_size": 3,
    "patch_size": 16,
}
SIZES = [(80, 80), (250, 333), (64, 96)]


def timm_sam(**options: Any) -> Any:
    return timm.create_model(
        "samvit_base_patch16",
        img_size=80,
        embed_dim=32,
        depth=3,
        num_heads=2,
        num_classes=0,
        window_size=3,
        global_attn_indexes=(1,),
        neck_chans=16,
        **options,
    )


def sam_config() -> SamVisionConfig:
    return SamVisionConfig(**SHAPE, mlp_dim=128, global_attn_indexes=[1], output_channels=16)


def padded(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return nn.functional.pad(images, (0, -width % 16, 0, -height % 16))


def as_map(backbone: Backbone, images: Tensor) -> Tensor:
    tokens = backbone.tokens(images)
    return torch.unflatten(tokens.patches.mT, 2, tokens.grid)


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert max(float(b.abs().mean()) for b in theirs) > 0.3, "the reference carries no signal"
    return max(float((a - b).abs().max() / b.abs().mean().clamp(min=1)) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("official", [False, True], ids=["timm's names", "the authors' names"])
def test_maps_and_neck_equal_timms(
    official: bool, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    authors = {"norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    theirs: Any = enliven(timm_sam(**(authors if official else {})))
    state = theirs.state_dict()
    if official:  # The whole SAM: image encoder, prompt encoder, mask decoder.
        state = {f"image_encoder.{key.replace('mlp.fc', 'mlp.lin')}": tensor for key, tensor in state.items()}
        state |= {
            "prompt_encoder.no_mask_embed.weight": torch.ones(1, 16),
            "mask_decoder.iou_token.weight": state["image_encoder.neck.1.weight"],
        }
    torch.save(state, tmp_path / "sam.pth")
    ours = fill("sam_base_patch16", tmp_path / "sam.pth", SAM)
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        images = picture(80, 80).to(to)
        ours, theirs = ours.to(to), theirs.to(to)
        maps = theirs.forward_intermediates(images, indices=[0, 1, 2], intermediates_only=True)
        assert apart([*ours(images), as_map(ours, images)], [*maps, theirs.forward_features(images)]) < bound
    assert ours.load_report is not None
    assert bool(ours.load_report.left_out) == official


@torch.no_grad()
def test_the_neck_equals_transformers_from_memory_and_from_files(
    enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(SamVisionModel(sam_config()))
    theirs.save_pretrained(tmp_path)
    for source in (theirs.state_dict(), tmp_path):
        ours = fill("sam_base_patch16", source, SAM)
        for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
            images = picture(80, 80).to(to)
            given = theirs.to(to)(images, output_hidden_states=True)
            maps = [state.permute(0, 3, 1, 2) for state in given.hidden_states[1:]]
            ours = ours.to(to)
            assert apart([*ours(images), as_map(ours, images)], [*maps, given.last_hidden_state]) < bound
        theirs, ours = theirs.float(), ours.float()


@torch.no_grad()
def test_a_whole_sam_of_transformers_loads(enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path) -> None:
    theirs: Any = enliven(SamModel(SamConfig(vision_config=sam_config().to_dict())))
    theirs.save_pretrained(tmp_path)
    ours = fill("sam_base_patch16", tmp_path, SAM)
    images = picture(80, 80)
    assert apart([as_map(ours, images)], [theirs.vision_encoder(images).last_hidden_state]) < SINGLE
    assert ours.load_report is not None
    assert any(key.startswith("mask_decoder.") for key in ours.load_report.left_out)


@torch.no_grad()
@pytest.mark.parametrize("decomposed", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_maps_equal_transformers_vitdet_at_any_size(
    size: tuple[int, int], decomposed: bool, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    config = VitDetConfig(  # type: ignore[call-arg]  # out_features is a property, which their stubs leave out
        **SHAPE,
        pretrain_image_size=80,
        window_block_indices=[0, 2],
        use_relative_position_embeddings=decomposed,
        out_features=["stage1", "stage2", "stage3"],
    )
    theirs: Any = enliven(VitDetBackbone(config))
    theirs.save_pretrained(tmp_path)
    for source in (theirs.state_dict(), tmp_path):
        ours = fill("vitdet_base_patch16", source, SMALL)
        for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
            images = picture(*size).to(to)
            ours, theirs = ours.to(to), theirs.to(to)
            assert apart(ours(images), list(theirs(padded(images)).feature_maps)) < bound
        theirs = theirs.float()


@torch.no_grad()
@pytest.mark.parametrize("names", ["timm", "transformers"])
def test_exported_weights_give_our_numbers_elsewhere(
    names: Any, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(timm_sam())
    ours = fill("sam_base_patch16", theirs.state_dict(), SAM)
    save_pretrained(ours, tmp_path, names)
    images = picture(80, 80)
    if names == "timm":
        again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        given = again.forward_features(images)
    else:
        again = AutoModel.from_pretrained(tmp_path).eval()
        given = again(images).last_hidden_state
    assert apart([as_map(ours, images)], [given]) < SINGLE
    back = fill("sam_base_patch16", tmp_path, SAM)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name

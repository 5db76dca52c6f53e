"""Our BEiT equals transformers' at any size and timm's at its own, from memory, from files, and back out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import AutoModel, BeitConfig, BeitForImageClassification, BeitModel

from vitdense.contracts import Backbone
from vitdense.weights import save_pretrained

SINGLE, DOUBLE = 1e-5, 1e-9
Enliven = Callable[[nn.Module], nn.Module]
Fill = Callable[..., Backbone]
Picture = Callable[..., Tensor]
SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "out_indices": (0, 2)}
SIZES = [(64, 64), (250, 333), (64, 96)]


def transformers_beit(**options: Any) -> Any:
    return BeitModel(
        BeitConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=128,
            image_size=64,
            **{"use_relative_position_bias": True, **options},
        )
    )


def timm_beit(**options: Any) -> Any:
    return timm.create_model(
        "beit_base_patch16_224", img_size=64, embed_dim=32, depth=3, num_heads=2, num_classes=5, **options
    )


def padded(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return nn.functional.pad(images, (0, -width % 16, 0, -height % 16))


def expected(model: Any, images: Tensor) -> list[Tensor]:
    """Maps of the first and the last block, and the pooled vector."""
    images = padded(images)
    grid = [side // 16 for side in images.shape[-2:]]
    given = model(images, output_hidden_states=True)
    maps = [given.hidden_states[i][:, 1:].mT.unflatten(2, grid) for i in (1, 3)]
    return [*maps, *([] if given.pooler_output is None else [given.pooler_output])]


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert max(float(b.abs().mean()) for b in theirs) > 0.3, "the reference carries no signal"
    return max(float((a - b).abs().max() / b.abs().mean().clamp(min=1)) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True], ids=["a table for each block", "one table"])
@pytest.mark.parametrize("size", SIZES)
def test_maps_and_vector_equal_transformers_at_any_size(
    size: tuple[int, int], shared: bool, enliven: Enliven, fill: Fill, picture: Picture
) -> None:
    options = {"use_relative_position_bias": not shared, "use_shared_relative_position_bias": shared}
    theirs: Any = enliven(transformers_beit(**options))
    ours = fill("beit_base_patch16", theirs.state_dict(), SMALL)
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        images = picture(*size).to(to)
        ours, theirs = ours.to(to), theirs.to(to)
        assert apart([*ours(images), ours.embed(images)], expected(theirs, images)) < bound


@torch.no_grad()
@pytest.mark.parametrize("kind", [BeitModel, BeitForImageClassification])
def test_what_save_pretrained_writes_loads(
    kind: Any, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    config = transformers_beit(use_absolute_position_embeddings=True).config
    theirs: Any = enliven(kind(config))
    theirs.save_pretrained(tmp_path)
    ours = fill("beit_base_patch16", tmp_path, SMALL)
    inner = theirs.beit if kind is BeitForImageClassification else theirs
    for size in SIZES:
        images = picture(*size)
        assert apart([*ours(images), ours.embed(images)], expected(inner, images)) < SINGLE
    report = ours.load_report
    assert report is not None
    assert not report.fresh
    assert bool(report.left_out) == (kind is BeitForImageClassification)


@torch.no_grad()
@pytest.mark.parametrize("absolute", [False, True])
def test_maps_and_vector_equal_timms(
    absolute: bool, enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(timm_beit(use_abs_pos_emb=absolute))
    torch.save({"model": theirs.state_dict()}, tmp_path / "beit.pth")
    ours = fill("beit_base_patch16", tmp_path / "beit.pth", SMALL)
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        images = picture(64, 64).to(to)
        ours, theirs = ours.to(to), theirs.to(to)
        maps = theirs.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
        vector = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        assert apart([*ours(images), ours.embed(images)], [*maps, vector]) < bound


@torch.no_grad()
def test_the_authors_pretraining_checkpoint_loads(enliven: Enliven, fill: Fill, picture: Picture) -> None:
    """One table for all blocks, a norm on the tokens, a head for masked patches."""
    theirs = enliven(timm_beit(use_shared_rel_pos_bias=True, use_rel_pos_bias=False, global_pool="token"))
    official = {**theirs.state_dict(), "mask_token": torch.zeros(1, 1, 32), "lm_head.weight": torch.zeros(8, 32)}
    official["rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    ours = fill("beit_base_patch16", {"model": official}, SMALL)
    images = picture(64, 64)
    tokens = ours.tokens(images)
    given: Any = theirs
    features = given.forward_features(images)
    assert apart([torch.cat([tokens.prefix, tokens.patches], dim=1)], [features]) < SINGLE


@torch.no_grad()
def test_exported_weights_give_our_numbers_elsewhere(
    enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path
) -> None:
    theirs: Any = enliven(transformers_beit())
    theirs.save_pretrained(tmp_path / "given")
    ours = fill("beit_base_patch16", tmp_path / "given", SMALL)
    save_pretrained(ours, tmp_path / "transformers", "transformers")
    again: Any = AutoModel.from_pretrained(tmp_path / "transformers").eval()
    images = picture(250, 333)
    assert apart([*ours(images), ours.embed(images)], expected(again, images)) < SINGLE
    back = fill("beit_base_patch16", tmp_path / "transformers", SMALL)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@torch.no_grad()
def test_exported_weights_run_in_timm(enliven: Enliven, fill: Fill, picture: Picture, tmp_path: Path) -> None:
    theirs: Any = enliven(timm_beit())
    ours = fill("beit_base_patch16", theirs.state_dict(), SMALL)
    save_pretrained(ours, tmp_path, "timm")
    again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = picture(64, 64)
    maps = again.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    vector = again.forward_head(again.forward_features(images), pre_logits=True)
    assert apart([*ours(images), ours.embed(images)], [*maps, vector]) < SINGLE

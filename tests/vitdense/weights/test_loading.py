"""Loading is strict: what fits is named, what must be made to fit is named too, and the rest is an error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitdense.contracts import BACKBONES, Backbone
from vitdense.errors import WeightsError
from vitdense.weights import load_weights, read_weights

Fill = Callable[..., Backbone]


def state_of(name: str, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    backbone = BACKBONES.create(name, options).build()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(0.0, 0.1)
    return backbone.state_dict()


def test_a_position_table_is_resized_to_the_stored_grid(fill: Fill) -> None:
    state = state_of("vit_nano_patch8", image_size=96)
    kept = fill("vit_nano_patch8", state, {})
    assert torch.equal(kept.state_dict()["pos_embed"], state["pos_embed"])
    resized = fill("vit_nano_patch8", state, {"image_size": 48})
    assert resized.load_report is not None
    assert resized.load_report.resized == ("pos_embed",)
    table = resized.state_dict()["pos_embed"]
    assert table.shape == (1, 37, 64)
    assert torch.equal(table[:, :1], state["pos_embed"][:, :1])
    # The smooth part of a table survives: a ramp stays a ramp, away from the border.
    ramp = (torch.arange(12) + 0.5)[:, None].expand(12, 12).reshape(1, 144, 1).expand(1, 144, 64) / 12
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], ramp], dim=1)
    table = fill("vit_nano_patch8", state, {"image_size": 48}).state_dict()["pos_embed"][0, 1:].view(6, 6, 64)
    torch.testing.assert_close(table[2:4, 3, 0], (torch.arange(2, 4) + 0.5) / 6, atol=1e-3, rtol=0)


def test_bias_tables_are_resized_for_another_window(fill: Fill) -> None:
    state = state_of("swin_nano")
    ours = fill("swin_nano", state, {"window": 12})
    assert ours.load_report is not None
    assert len(ours.load_report.resized) == 8
    table = ours.state_dict()["layers.0.blocks.0.attn.relative_position_bias_table"].view(23, 23, -1)
    old = state["layers.0.blocks.0.attn.relative_position_bias_table"].view(13, 13, -1)
    torch.testing.assert_close(table[11, 11], old[6, 6], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit_nano_patch8", "swin_nano"])
def test_colour_kernels_fit_other_channels(name: str, fill: Fill) -> None:
    state = state_of(name)
    kernel = state["patch_embed.proj.weight"]
    for channels in (1, 2, 4, 6):
        ours = fill(name, state, {"in_channels": channels})
        assert ours.load_report is not None
        assert ours.load_report.adapted == ("patch_embed.proj.weight",)
        adapted = ours.state_dict()["patch_embed.proj.weight"]
        expected = kernel.sum(1) if channels == 1 else kernel[:, (channels - 1) % 3] * 3 / channels
        torch.testing.assert_close(adapted[:, -1], expected)


def test_norms_of_outputs_that_a_classifier_lacks_are_fresh(fill: Fill) -> None:
    state = state_of("swin_nano")
    classifier = {key: tensor for key, tensor in state.items() if not key.startswith("norms.")}
    classifier |= {"norm.weight": state["norms.3.weight"], "norm.bias": state["norms.3.bias"]}
    classifier["head.fc.weight"] = torch.ones(10, 256)
    ours = fill("swin_nano", classifier, {})
    assert ours.load_report is not None
    assert ours.load_report.fresh == tuple(f"norms.{i}.{kind}" for i in range(3) for kind in ("bias", "weight"))
    assert ours.load_report.left_out == ("head.fc.weight",)
    assert torch.equal(ours.state_dict()["norms.3.weight"], state["norms.3.weight"])
    assert torch.equal(ours.state_dict()["norms.0.weight"], torch.ones(32))
    assert "6 fresh (norms.0.bias, norms.0.weight, norms.1.bias, norms.1.weight, ...)" in str(ours.load_report)


def test_norms_of_outputs_that_are_not_asked_for_are_left_out(fill: Fill) -> None:
    ours = fill("swin_nano", state_of("swin_nano"), {"out_indices": (1, 3)})
    assert ours.load_report is not None
    assert {key.split(".")[1] for key in ours.load_report.left_out} == {"0", "2"}


def test_a_class_token_is_left_out_of_a_backbone_without_one(fill: Fill) -> None:
    state = state_of("vit_nano_patch8")
    ours = fill("vit_nano_patch8", state, {"cls_token": False, "pool": "mean"})
    assert ours.load_report is not None
    assert ours.load_report.left_out == ("cls_token", "pos_embed[:, :1]")
    assert ours.load_report.adapted == ("pos_embed",)
    assert torch.equal(ours.state_dict()["pos_embed"], state["pos_embed"][:, 1:])
    smaller = fill("vit_nano_patch8", state, {"cls_token": False, "pool": "mean", "image_size": 48})
    assert smaller.load_report is not None
    assert smaller.load_report.resized == ("pos_embed",)
    assert smaller.state_dict()["pos_embed"].shape == (1, 36, 64)


def test_what_pools_in_another_way_is_left_out(fill: Fill) -> None:
    attending = {"cls_token": False, "pool": "attention"}
    state = state_of("vit_nano_patch8", **attending)
    ours = fill("vit_nano_patch8", state, {"cls_token": False, "pool": "mean"})
    assert ours.load_report is not None
    assert {key.split(".")[0] for key in ours.load_report.left_out} == {"attn_pool"}
    with pytest.raises(WeightsError, match=r"fit vit_nano_patch8 with cls_token=False, pool='attention': 13 missing: "):
        fill("vit_nano_patch8", ours.state_dict(), attending)


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"positions": "none", "relations": "table"}, ["relative_position_bias_table"]),
        ({"cls_token": False, "pool": "mean", "relations": "decomposed"}, ["rel_pos_h", "rel_pos_w"]),
    ],
)
def test_tables_of_relations_are_resized_as_the_attention_would(
    options: dict[str, Any], keys: list[str], fill: Fill, picture: Callable[..., Tensor]
) -> None:
    state = state_of("vit_nano_patch8", **options)
    kept = fill("vit_nano_patch8", state, options)
    assert kept.load_report is not None
    assert not kept.load_report.resized
    ours = fill("vit_nano_patch8", state, {**options, "image_size": 96})
    assert ours.load_report is not None
    tables = [f"blocks.{i}.attn.{key}" for i in range(4) for key in keys]
    assert sorted(set(ours.load_report.resized) - {"pos_embed"}) == sorted(tables)
    with torch.no_grad():
        images = picture(96, 96)
        torch.testing.assert_close(ours.embed(images), kept.embed(images), atol=1e-5, rtol=1e-5)


def test_missing_unexpected_and_misshaped_keys_are_named(fill: Fill) -> None:
    state = state_of("vit_nano_patch8")
    del state["blocks.3.mlp.fc1.bias"]
    state["blocks.4.norm1.weight"] = torch.ones(64)
    state["norm.bias"] = torch.ones(65)
    with pytest.raises(WeightsError) as caught:
        fill("vit_nano_patch8", state, {})
    assert str(caught.value) == (
        "a mapping [timm] doesn't fit vit_nano_patch8: 1 missing: blocks.3.mlp.fc1.bias; "
        "1 unexpected: blocks.4.norm1.weight; 1 of another shape: norm.bias (65,) for (64,)"
    )


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("vit_nano_patch8", "swin_nano", r"a mapping \[vitdense\] looks like swin_nano, expected vit_nano_patch8: "),
        ("swin_nano", "vit_nano_patch8", r"a mapping \[timm\] looks like vit_nano_patch8, expected swin_nano: "),
        ("vit_tiny_patch16", "vit_nano_patch8", "looks like vit_nano_patch8, expected vit_tiny_patch16: "),
    ],
)
def test_weights_of_another_backbone_are_recognised(name: str, other: str, message: str, fill: Fill) -> None:
    with pytest.raises(WeightsError, match=message):
        fill(name, state_of(other), {})


def test_a_failed_load_leaves_the_backbone_as_it_was() -> None:
    config = BACKBONES.create("vit_nano_patch8")
    backbone = config.build()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    state = state_of("vit_nano_patch8")
    del state["norm.weight"]
    with pytest.raises(WeightsError):
        load_weights(backbone, read_weights(state, config))
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())

"""Weights that don't fit are recognised by the registered backbone that they look like."""

import pytest
import torch
from torch import Tensor

from vitdense.contracts import BACKBONES
from vitdense.weights.nearest import nearest_presets


def on_paper(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return BACKBONES.create(name).build().state_dict()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("vit_base_patch32", "vit_base_patch16"),
        ("vit_large_patch32", "vit_huge_patch14"),
        ("dinov2_base_patch14", "vit_base_patch16"),
        ("dinov2_base_patch14_reg", "dinov2_base_patch14"),
        ("beit_base_patch16", "vit_base_patch16"),
        ("sam_base_patch16", "vit_base_patch16"),
        ("swin_small", "swin_tiny"),
        ("swin_large", "vit_large_patch16"),
    ],
)
def test_a_preset_is_recognised_by_names_and_shapes(given: str, expected: str) -> None:
    assert given in nearest_presets(on_paper(given), on_paper(expected))
    assert expected not in nearest_presets(on_paper(given), on_paper(expected))


def test_presets_of_the_same_shapes_are_all_named() -> None:
    nearest = nearest_presets(on_paper("vit_small_patch16"), on_paper("vit_base_patch16"))
    assert nearest == ["deit_small_patch16", "vit_small_patch16"]


def test_a_fault_or_two_don_t_make_weights_look_like_something_else() -> None:
    state = on_paper("vit_base_patch16")
    del state["norm.bias"]
    state["more"] = torch.ones(1)
    assert nearest_presets(state, on_paper("vit_base_patch16")) == []


def test_strangers_look_like_nothing() -> None:
    assert nearest_presets({"a": torch.ones(1)}, on_paper("vit_nano_patch8")) == []

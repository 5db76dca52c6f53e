"""Weights that don't fit are recognised by the registered backbone that they look like."""

import pytest
import torch
from torch import Tensor

from vitdense.contracts import BACKBONES
from vitdense.weights.nearest import nearest_preset


def on_paper(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return BACKBONES.create(name).build().state_dict()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("vit_small_patch16", "vit_base_patch16"),
        ("vit_base_patch32", "vit_base_patch16"),
        ("vit_large_patch16", "vit_huge_patch14"),
        ("swin_small", "swin_tiny"),
        ("swin_large", "vit_large_patch16"),
        ("vit_tiny_patch16", "swin_tiny"),
    ],
)
def test_a_preset_is_recognised_by_names_and_shapes(given: str, expected: str) -> None:
    assert nearest_preset(on_paper(given), on_paper(expected)) == given


def test_a_fault_or_two_don_t_make_weights_look_like_something_else() -> None:
    state = on_paper("vit_base_patch16")
    del state["norm.bias"]
    state["more"] = torch.ones(1)
    assert nearest_preset(state, on_paper("vit_base_patch16")) is None


def test_strangers_look_like_nothing() -> None:
    assert nearest_preset({"a": torch.ones(1)}, on_paper("vit_nano_patch8")) is None

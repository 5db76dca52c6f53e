"""DPT's reassembling: transformers' stage with the same weights, at any size, with every readout."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vitdense.adapters.reassemble import Reassemble
from vitdense.contracts import ADAPTERS, BACKBONES, Backbone, Level, Tokens
from vitdense.errors import UserError

DIM = 24
CHANNELS = (6, 8, 10, 12)
TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
SIZES = [(64, 96), (250, 333), (75, 98)]
Plain = Callable[..., Backbone]
Enliven = Callable[[nn.Module], nn.Module]


def build(patch: int, readout: str) -> Reassemble:
    adapter = ADAPTERS.create("reassemble", {"channels": CHANNELS, "readout": readout}).build((Level(24, patch),) * 4)
    assert isinstance(adapter, Reassemble)
    return adapter


def theirs(ours: Reassemble, readout: Any, patch: int) -> nn.Module:
    """transformers' stage, with our weights under the same names."""
    from transformers import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTReassembleStage

    factors = [patch / 4, patch / 8, patch / 16, patch / 32]
    config = DPTConfig(
        hidden_size=DIM,
        num_attention_heads=2,
        neck_hidden_sizes=CHANNELS,
        reassemble_factors=[int(each) if each >= 1 else each for each in factors],
        readout_type=readout,
        is_hybrid=bool(ours.kept),
        neck_ignore_stages=list(range(ours.kept)),
    )
    make: Any = DPTReassembleStage  # untyped
    stage: nn.Module = make(config)
    stage.load_state_dict(ours.state_dict())
    return stage.to(next(ours.parameters()).dtype)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("readout", ["ignore", "add", "project"])
@pytest.mark.parametrize("patch", [16, 32])
def test_maps_equal_transformers(
    patch: int,
    readout: str,
    size: tuple[int, int],
    dtype: torch.dtype,
    tolerance: float,
    plain: Plain,
    enliven: Enliven,
) -> None:
    """On the tokens of the padded picture; theirs also covers the padding."""
    ours, backbone = enliven(build(patch, readout)).to(dtype), enliven(plain(patch)).to(dtype)
    assert isinstance(ours, Reassemble)
    assert isinstance(backbone, Backbone)
    images = torch.randn(2, 3, *size, dtype=dtype)
    stages = backbone.forward_stages(images)
    hidden = [torch.cat([each.prefix, each.patches], dim=1) for each in stages]
    expected = theirs(ours, readout, patch)(hidden, *stages[0].grid)
    outputs = ours.adapt(backbone, images)
    for own, other, level in zip(outputs, expected, ours.levels, strict=True):
        rows, columns = -(-size[0] // level.stride), -(-size[1] // level.stride)
        assert own.shape == (2, level.channels, rows, columns)
        torch.testing.assert_close(own, other[..., :rows, :columns], atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_a_hybrids_maps_equal_transformers(
    size: tuple[int, int], dtype: torch.dtype, tolerance: float, enliven: Enliven
) -> None:
    """DPT-Hybrid: the ResNet's maps as they are, the class token read into those of the blocks."""
    options = {"embed_dim": DIM, "image_size": 64}
    backbone = enliven(BACKBONES.create("vit_nano_r_s16", options).build()).to(dtype)
    assert isinstance(backbone, Backbone)
    config = ADAPTERS.create("reassemble", {"channels": CHANNELS, "readout": "project"})
    ours = enliven(config.build(backbone.levels)).to(dtype)
    assert isinstance(ours, Reassemble)
    assert [level.channels for level in ours.levels] == [128, 256, 10, 12]
    images = torch.randn(2, 3, *size, dtype=dtype)
    stages, maps = backbone.forward_stages(images), backbone(images)
    hidden = maps[:2] + [torch.cat([each.prefix, each.patches], dim=1) for each in stages[2:]]
    expected = theirs(ours, "project", 16)(hidden, *stages[-1].grid)
    for own, other, level in zip(ours.adapt(backbone, images), expected, ours.levels, strict=True):
        rows, columns = -(-size[0] // level.stride), -(-size[1] // level.stride)
        assert own.shape == (2, level.channels, rows, columns)
        torch.testing.assert_close(own, other[..., :rows, :columns], atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_a_patch_shows_at_its_place_on_every_level(patch: int, enliven: Enliven) -> None:
    adapter = enliven(build(patch, "ignore"))
    plain = [torch.zeros(1, 24, 448 // patch, 448 // patch) for _ in range(4)]
    row, column = plain[0].shape[2] // 2, plain[0].shape[3] // 4
    touched = [each.clone() for each in plain]
    for each in touched:
        each[..., row, column] = torch.randn(24) * 5
    images = torch.zeros(1, 3, 448, 448)
    assert isinstance(adapter, Reassemble)
    for level, before, after in zip(adapter.levels, adapter(plain, images), adapter(touched, images), strict=True):
        change = (after - before).abs().sum(1)[0]
        for axis, cell in ((0, row), (1, column)):
            profile = change.sum(1 - axis)
            centre = float((profile * (torch.arange(len(profile)) + 0.5)).sum() / profile.sum()) * level.stride
            assert abs(centre - (cell + 0.5) * patch) < max(level.stride, patch)


@pytest.mark.parametrize("readout", ["add", "project"])
def test_the_class_token_is_the_first_of_the_prefix(
    readout: str, plain: Plain, enliven: Enliven, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, backbone = enliven(build(16, readout)), plain(16)
    assert isinstance(adapter, Reassemble)
    images = torch.randn(1, 3, 32, 32)
    stages, alone = backbone.forward_stages(images), adapter.adapt(backbone, images)
    crowded = [Tokens(p, torch.cat([prefix, torch.randn(1, 4, 24)], dim=1), grid) for p, prefix, grid in stages]
    monkeypatch.setattr(backbone, "forward_stages", lambda images: crowded)
    for one, other in zip(alone, adapter.adapt(backbone, images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("readout", ["add", "project"])
def test_a_backbone_without_a_class_token_is_refused(readout: str) -> None:
    options = {"cls_token": False, "pool": "mean"}
    backbone = BACKBONES.create("vit_nano_patch8", options).build()
    adapter = ADAPTERS.create("reassemble", {"readout": readout}).build(backbone.levels)
    with pytest.raises(UserError, match=r"this backbone has none: `adapter: \{name: reassemble, readout: ignore\}`"):
        adapter.adapt(backbone, torch.randn(1, 3, 32, 32))


def test_a_hybrid_of_other_stages_is_refused() -> None:
    with pytest.raises(UserError, match=r"a hybrid's of strides 4 and 8 and plain ones; got strides \[8, 16, 16, 16\]"):
        ADAPTERS.create("reassemble").build((Level(24, 8), *(Level(24, 16),) * 3))


def test_other_numbers_of_maps_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"reassemble takes 4 plain maps, .*; got strides \[16, 16, 16\].*simple_pyramid"
    ):
        ADAPTERS.create("reassemble").build((Level(24, 16),) * 3)

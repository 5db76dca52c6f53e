"""Hybrids: which maps are given, at which strides, and what is run for them."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.contracts import BACKBONES, Backbone
from vitdense.errors import UserError

NANO = "vit_nano_r_s16"


def made(**options: Any) -> Backbone:
    torch.manual_seed(0)
    return BACKBONES.create(NANO, options).build().eval()


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        ("vit_base_r50_s16", (4, 8, 16, 16), (256, 512, 768, 768)),
        ("vit_small_r26_s32", (4, 8, 16, 32), (256, 512, 1024, 384)),
        ("vit_large_r50_s32", (4, 8, 16, 32), (256, 512, 1024, 1024)),
        ("vit_tiny_r_s16_p8", (32, 32, 32, 32), (192, 192, 192, 192)),
    ],
)
def test_by_default_stages_finer_than_tokens_lead_a_pyramid(
    name: str, strides: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        levels = BACKBONES.create(name).build().levels
    assert tuple(level.stride for level in levels) == strides
    assert tuple(level.channels for level in levels) == channels


@torch.no_grad()
def test_the_default_taps_of_r50_are_those_of_dpt() -> None:
    config = {"stem_layers": (1, 1, 1), "stem_width": 32, "embed_dim": 48, "num_heads": 3}
    torch.manual_seed(0)
    default = BACKBONES.create("vit_base_r50_s16", config).build().eval()
    named = BACKBONES.create("vit_base_r50_s16", {**config, "out_indices": (0, 1, 3 + 8, 3 + 11)}).build().eval()
    named.load_state_dict(default.state_dict())
    images = torch.randn(1, 3, 32, 48)
    for each, other in zip(default(images), named(images), strict=True):
        assert torch.equal(each, other)


@torch.no_grad()
def test_indices_count_stages_then_blocks() -> None:
    images = torch.randn(1, 3, 50, 70)
    everything = made(out_indices=range(7))(images)
    assert [tuple(each.shape[1:]) for each in everything] == [
        *[(128, 13, 18), (256, 7, 9), (512, 4, 5)],
        *[(64, 4, 5)] * 4,
    ]
    for chosen in ((0,), (2,), (1, 4), (0, 2, 3), (-1,), (-7, -2)):
        for i, each in zip(chosen, made(out_indices=chosen)(images), strict=True):
            assert torch.equal(each, everything[i])


@pytest.mark.parametrize(("chosen", "stages", "blocks"), [((0, 1), 2, 0), ((1, 4), 3, 2)])
def test_fewer_outputs_run_fewer_stages_and_blocks(chosen: tuple[int, ...], stages: int, blocks: int) -> None:
    hybrid: Any = made(out_indices=chosen)
    calls: list[nn.Module] = []
    for part in (*hybrid.patch_embed.backbone.stages, *hybrid.blocks):
        part.register_forward_hook(lambda module, *_: calls.append(module))
    torch.autograd.backward([each.mean() for each in hybrid(torch.randn(1, 3, 32, 32))])
    assert len(calls) == stages + blocks
    without = {key for key, parameter in hybrid.named_parameters() if parameter.grad is None}
    assert without == hybrid.unused_in_maps()


@torch.no_grad()
@pytest.mark.parametrize("size", [(45, 33), (32, 31), (5, 3)])
def test_maps_of_any_size_are_those_of_the_padded_picture(size: tuple[int, int]) -> None:
    hybrid = made(out_indices=range(7))
    images = torch.randn(2, 3, *size)
    padded: Tensor = F.pad(images, (0, -size[1] % 16, 0, -size[0] % 16))
    for level, each, whole in zip(hybrid.levels, hybrid(images), hybrid(padded), strict=True):
        rows, columns = (-(-length // level.stride) for length in size)
        assert each.shape[2:] == (rows, columns)
        assert torch.equal(each, whole[:, :, :rows, :columns])


@torch.no_grad()
def test_only_the_blocks_maps_are_normed() -> None:
    images = torch.randn(1, 3, 32, 48)
    normed, raw = made()(images), made(norm_maps=False)(images)
    assert [torch.equal(a, b) for a, b in zip(normed, raw, strict=True)] == [True, True, False, False]
    patches = F.layer_norm(raw[-1].flatten(2).mT, (64,), eps=1e-6)
    torch.testing.assert_close(patches, normed[-1].flatten(2).mT)


@torch.no_grad()
def test_an_adapter_may_enter_where_only_blocks_are_named() -> None:
    images = torch.randn(1, 3, 32, 48)
    blocks = made(out_indices=(4, 6))
    for (patches, _, grid), each in zip(blocks.forward_stages(images), blocks(images), strict=True):
        assert torch.equal(torch.unflatten(patches.mT, 2, grid), each)
    with pytest.raises(UserError, match=r"stages \[0, 1\] of the ResNet, which have no tokens: .* from 3 on"):
        made().forward_stages(images, Mock())


@torch.no_grad()
def test_maps_of_the_resnet_come_as_tokens_without_a_prefix() -> None:
    images = torch.randn(1, 3, 33, 50)
    for i, ((patches, prefix, grid), each) in enumerate(
        zip(made().forward_stages(images), made()(images), strict=True)
    ):
        assert torch.equal(torch.unflatten(patches.mT, 2, grid), each)
        assert prefix.shape == (1, 0 if i < 2 else 1, each.shape[1])


def test_a_frozen_hybrid_keeps_its_resnet_still() -> None:
    hybrid: Any = made(frozen_stages=1).train()
    assert not any(parameter.requires_grad for parameter in hybrid.patch_embed.parameters())
    assert all(parameter.requires_grad for parameter in hybrid.blocks.parameters())


def test_statistics_are_halves_unless_said_otherwise() -> None:
    assert made().mean == made().std == (0.5, 0.5, 0.5)
    assert made(in_channels=1).mean == (0.5,)
    assert made(mean=(0.1, 0.2, 0.3)).mean == (0.1, 0.2, 0.3)


@torch.no_grad()
def test_a_hybrid_is_one_graph() -> None:
    hybrid = made()
    images = torch.randn(1, 3, 50, 70)
    compiled: Any = torch.compile(hybrid, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), hybrid(images))


@torch.no_grad()
def test_autocast_stays_near() -> None:
    hybrid = made()
    images = torch.randn(1, 3, 50, 70)
    with torch.autocast("cpu", torch.bfloat16):
        maps = hybrid(images)
    for each, exact in zip(maps, hybrid(images), strict=True):
        assert (each - exact).abs().mean() < 0.05 * exact.abs().mean()

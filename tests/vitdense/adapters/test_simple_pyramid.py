"""The simple pyramid: its sizes, its alignment, and its arithmetic against a second writing of ViTDet's."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.adapters.simple_pyramid import SimplePyramid
from vitdense.contracts import ADAPTERS, Adapter, Level
from vitdense.errors import UserError


def build(patch: int, channels: int = 16) -> Adapter:
    return ADAPTERS.create("simple_pyramid", {"channels": channels}).build((Level(32, patch), Level(32, patch)))


@pytest.mark.parametrize("patch", [4, 8, 14, 16, 32])
@pytest.mark.parametrize("size", [(224, 224), (250, 333), (64, 96), (9, 5)])
def test_levels_are_true(patch: int, size: tuple[int, int]) -> None:
    adapter = build(patch)
    plain = torch.randn(2, 32, -(-size[0] // patch), -(-size[1] // patch))
    maps = adapter([plain, plain], torch.zeros(2, 3, *size))
    assert [level.stride for level in adapter.levels] == [4, 8, 16, 32]
    expected = [(2, each.channels, -(-size[0] // each.stride), -(-size[1] // each.stride)) for each in adapter.levels]
    assert [tuple(each.shape) for each in maps] == expected


def test_arithmetic_is_vitdets() -> None:
    torch.manual_seed(0)
    adapter = build(16).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0.2, 0.3)
    plain = torch.randn(2, 32, 6, 4, dtype=torch.float64)
    maps = adapter([plain], torch.zeros(2, 3, 96, 64))
    p = {name: value.detach() for name, value in adapter.named_parameters()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]

    def up(x: Tensor, name: str) -> Tensor:
        spread = torch.einsum("bchw,cdij->bdhiwj", x, p[f"{name}.weight"])
        return spread.reshape(2, -1, 2 * x.shape[2], 2 * x.shape[3]) + p[f"{name}.bias"][:, None, None]

    def close(x: Tensor, stage: int, at: int) -> Tensor:
        x = norm(
            torch.einsum("bchw,dc->bdhw", x, p[f"stages.{stage}.{at}.weight"][..., 0, 0]), f"stages.{stage}.{at + 1}"
        )
        return norm(F.conv2d(x, p[f"stages.{stage}.{at + 2}.weight"], padding=1), f"stages.{stage}.{at + 3}")

    expected = [
        close(up(F.gelu(norm(up(plain, "stages.0.0"), "stages.0.1")), "stages.0.3"), 0, 4),
        close(up(plain, "stages.1.0"), 1, 1),
        close(plain, 2, 0),
        close(plain.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)), 3, 1),
    ]
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_a_patch_shows_at_its_place_on_every_level(patch: int) -> None:
    torch.manual_seed(0)
    adapter = build(patch)
    plain = torch.zeros(1, 32, 224 // patch, 224 // patch)
    touched = plain.clone()
    row, column = plain.shape[2] // 2, plain.shape[3] // 4
    touched[..., row, column] = torch.randn(32) * 5
    images = torch.zeros(1, 3, 224, 224)
    for level, before, after in zip(adapter.levels, adapter([plain], images), adapter([touched], images), strict=True):
        change = (after - before).abs().sum(1)[0]
        for axis, cell in ((0, row), (1, column)):
            profile = change.sum(1 - axis)
            centre = float((profile * (torch.arange(len(profile)) + 0.5)).sum() / profile.sum()) * level.stride
            assert abs(centre - (cell + 0.5) * patch) < max(level.stride, patch)


def test_a_pyramid_needs_no_pyramid() -> None:
    levels = tuple(Level(8 * 2**i, 4 * 2**i) for i in range(4))
    with pytest.raises(UserError, match=r"strides \[4, 8, 16, 32\] already: leave the adapter out"):
        ADAPTERS.create("simple_pyramid").build(levels)


def test_no_parameter_is_left_unused() -> None:
    adapter = build(14)
    assert isinstance(adapter, SimplePyramid)
    plain: nn.Parameter = nn.Parameter(torch.randn(1, 32, 4, 4))
    sum(each.square().mean() for each in adapter([plain], torch.zeros(1, 3, 56, 56))).backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())

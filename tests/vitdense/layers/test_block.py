"""The parts of a transformer block."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitdense.errors import UserError
from vitdense.layers.attention import Attention, AttentionOptions, Surroundings
from vitdense.layers.block import Block, BlockOptions, DropPath, drop_path_rates, run_again_in_backward
from vitdense.layers.embed import PatchEmbed, pad_rows_and_columns
from vitdense.layers.norm import LayerNorm2d
from vitdense.layers.position import resize_positions

AROUND = Surroundings((1, 5))


def test_attention_equals_the_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(AttentionOptions(dim=12, num_heads=3)).double()
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = attention.qkv(tokens).reshape(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    mixed = (q @ k.mT / 2).softmax(-1) @ v
    torch.testing.assert_close(attention(tokens, AROUND), attention.proj(mixed.transpose(1, 2).reshape(2, 5, 12)))


def test_drop_path_keeps_the_expectation_and_whole_samples() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    dropped = drop(torch.ones(4000, 2, 3))
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0.0, 4 / 3])
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(torch.ones(4, 2)), torch.ones(4, 2))


def test_drop_path_grows_linearly() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]


def test_running_again_draws_the_same_dropped_paths() -> None:
    torch.manual_seed(0)
    block = Block(
        BlockOptions(AttentionOptions(dim=8, num_heads=2), hidden=32, drop_path=0.5, layer_scale=0.5)
    ).double()
    tokens = torch.randn(6, 3, 8, dtype=torch.float64, requires_grad=True)
    gradients = []
    for run in (nn.Module.__call__, run_again_in_backward):
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(run(block, tokens, AROUND).square().sum(), [tokens, *block.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_patches_beyond_the_picture_are_zeros() -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(3, embed_dim=6, patch=4)
    images = torch.randn(1, 3, 9, 7)
    padded = F.pad(images, (0, 1, 0, 3))
    assert embed(images).shape == (1, 3, 2, 6)
    assert torch.equal(embed(images), embed(padded))


def test_nothing_is_padded_where_the_size_divides() -> None:
    maps = torch.randn(1, 8, 12, 3)
    assert pad_rows_and_columns(maps, 4, channels_last=True) is maps
    assert pad_rows_and_columns(maps, 5, channels_last=True).shape == (1, 10, 15, 3)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 8, 8)])
def test_pictures_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"expected images \(B, 3, H, W\), given"):
        PatchEmbed(3, embed_dim=6, patch=4)(torch.zeros(shape))


def test_layer_norm_of_maps_is_over_channels() -> None:
    maps = torch.randn(2, 5, 3, 4)
    expected = F.layer_norm(maps.permute(0, 2, 3, 1), (5,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(LayerNorm2d(5)(maps), expected)


def test_positions_stay_as_stored_at_the_stored_size() -> None:
    table = torch.randn(1, 4, 4, 3)
    assert resize_positions(table, (4, 4)) is table
    assert resize_positions(table, (5, 7), antialias=False).shape == (1, 5, 7, 3)
    halves = table.to(torch.bfloat16)
    assert resize_positions(halves, (3, 2)).dtype == torch.bfloat16
    doubles = table.double()
    close = resize_positions(doubles, (2, 2), interpolation="bilinear", antialias=False)
    torch.testing.assert_close(close, doubles.view(1, 2, 2, 2, 2, 3).mean((2, 4)))


def test_offset_positions_export_to_what_interpolate_gives() -> None:
    from vitdense.layers.position import _cubic_weights

    table = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    for size in ((9, 3), (5, 12)):
        scale = tuple((count + 0.1) / 5 for count in size)
        down, across = (_cubic_weights(count, 5, 0.1) for count in size)
        expected = F.interpolate(table, scale_factor=scale, mode="bicubic")
        torch.testing.assert_close(down @ table @ across.mT, expected)

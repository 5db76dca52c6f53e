"""Attention maps and rollout beside transformers' attentions, matrices multiplied by hand, and cases that are known."""

import math
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import vitdense
from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.explaining import attention_maps, attention_rollout
from vitdense.explaining.attention import parse_query

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 3, "image_size": 32}
STAGES: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window": 4, "out_indices": (0, 1)}


def lively(backbone: Backbone) -> Backbone:
    """Weights that carry signal, so that attention is far from even."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return backbone.eval()


def all_tokens(backbone: Backbone, images: Tensor, prefix: int, layer: int) -> Tensor:
    """(B, heads, h * w, h * w) of a layer, from a map for each cell."""
    height, width = attention_maps(backbone, images, layer=layer, query="mean").shape[-2:]
    cells = [(row, column) for row in range(height) for column in range(width)]
    return torch.stack([attention_maps(backbone, images, layer=layer, query=cell).flatten(-2) for cell in cells], 2)


@pytest.fixture(scope="module")
def pair() -> tuple[Backbone, list[Tensor], Tensor]:
    """A ViT, transformers' attentions with the same weights (B, heads, N, N), and pictures."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96, image_size=32, patch_size=8
    )  # fmt: skip
    theirs: Any = nn.Module.eval(transformers.ViTModel(config, add_pooling_layer=False))
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.25)
    ours = vitdense.create_backbone("vit_tiny_patch16", weights=theirs.state_dict(), patch_size=8, **SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = theirs(images, output_attentions=True).attentions
    return ours, list(found), images


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_maps_are_rows_of_transformers_attentions(pair: tuple[Backbone, list[Tensor], Tensor], layer: int) -> None:
    ours, attentions, images = pair
    expected = attentions[layer]  # (B, heads, 17, 17)
    found = attention_maps(ours, images, layer=layer)
    torch.testing.assert_close(found.flatten(-2), expected[:, :, 0, 1:], rtol=1e-5, atol=1e-6)
    cell = attention_maps(ours, images, layer=layer, query=(2, 3))
    torch.testing.assert_close(cell.flatten(-2), expected[:, :, 1 + 2 * 4 + 3, 1:], rtol=1e-5, atol=1e-6)
    even = attention_maps(ours, images, layer=layer, query="mean")
    torch.testing.assert_close(even.flatten(-2), expected[:, :, 1:, 1:].mean(2), rtol=1e-5, atol=1e-6)


def test_rollout_is_the_product_of_transformers_attentions(pair: tuple[Backbone, list[Tensor], Tensor]) -> None:
    ours, attentions, images = pair
    product = torch.eye(17)
    for each in attentions:
        product = (0.5 * torch.eye(17) + 0.5 * each.mean(1)) @ product
    found = attention_rollout(ours, images).flatten(-2)
    torch.testing.assert_close(found, product[:, 0, 1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window_order", ["pad_roll", "roll_pad"])
def test_swins_windows_stand_where_they_belong(window_order: str) -> None:
    """7 x 9 cells in windows of 4: a cell attends to its window alone, also where windows are shifted."""
    backbone = lively(vitdense.create_backbone("swin_nano", window_order=window_order, **STAGES))
    images = torch.randn(1, 3, 28, 36)
    plain = all_tokens(backbone, images, 0, 0)
    rows, columns = torch.arange(7).repeat_interleave(9), torch.arange(9).repeat(7)
    window = (rows // 4) * 4 + columns // 4
    same = window[:, None] == window
    assert (plain[0, :, ~same] == 0).all()
    assert (plain[0, :, same] > 0).all()
    shifted = all_tokens(backbone, images, 0, 1)
    across = (rows[:, None] != rows) & (rows[:, None] // 4 != rows // 4)
    assert (shifted[0][:, across] > 1e-6).any(), "shifted windows reach over the edges of the others"
    inside = shifted[0, :, 4 * 9 + 4].sum(-1)
    torch.testing.assert_close(inside, torch.ones_like(inside))


@pytest.mark.parametrize(("name", "options"), [("swin_nano", STAGES), ("swinv2_nano", {**STAGES, "image_size": None})])
def test_values_mixed_by_the_maps_are_what_the_layer_gives(name: str, options: dict[str, Any]) -> None:
    """The maps of a layer times its own values, projected, are its output."""
    backbone = lively(vitdense.create_backbone(name, **options))
    images, layer = torch.randn(1, 3, 32, 48), 1
    block: Any = backbone.attention_blocks()[layer]
    caught: dict[str, Tensor] = {}
    hook = block.register_forward_pre_hook(lambda _, inputs: caught.update(maps=inputs[0]))
    weights = all_tokens(backbone, images, 0, layer)  # (1, heads, N, N)
    hook.remove()
    given = caught["maps"] if name.startswith("swinv2") else block.norm1(caught["maps"])
    heads = block.attn.num_heads
    values = torch.unflatten(block.attn.project(given), -1, (3, heads, -1))[..., 2, :, :].flatten(1, 2).transpose(1, 2)
    mixed = block.attn.proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, block.attn(given).flatten(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_nano_patch8", {}),
        ("dinov2_small_patch14_reg", {**SMALL, "image_size": 56}),
        ("dinov3_small_patch16", {**SMALL}),
        ("beit_base_patch16", {**SMALL}),
        ("vitdet_base_patch16", {**SMALL, "window": 2, "global_blocks": (1,)}),
        ("vit_nano_r_s16", {}),
        ("swin_nano", {}),
        ("swinv2_nano", {}),
    ],
)
def test_every_family_tells_what_it_attends_to(name: str, options: dict[str, Any]) -> None:
    backbone = lively(vitdense.create_backbone(name, **options))
    images = torch.randn(2, 3, 75, 98)
    for layer in range(len(backbone.attention_blocks())):
        maps = attention_maps(backbone, images, layer=layer)
        assert maps.shape[0] == 2
        assert (maps >= 0).all()
        assert (maps.sum((-1, -2)) <= 1 + 1e-5).all()
    first = attention_maps(backbone, images, layer=0)
    rollout = attention_rollout(backbone, images)
    assert rollout.shape == (2, *first.shape[-2:])
    assert (rollout >= 0).all()
    assert (rollout.sum((-1, -2)) <= 1 + 1e-5).all()
    assert (rollout.sum((-1, -2)) > 0.2).all()


def test_a_patch_that_is_looked_at_shines() -> None:
    """Keys are large where a patch is bright, queries are the same everywhere: all look at the bright patch."""
    backbone = vitdense.create_backbone("vit_nano_patch8", image_size=32, depth=1, embed_dim=32, num_heads=2).eval()
    block: Any = backbone.attention_blocks()[0]
    images = torch.zeros(1, 3, 32, 40)
    images[..., 16:24, 8:16] = 4.0
    with torch.no_grad():
        block.attn.qkv.weight.zero_()
        block.attn.qkv.bias.zero_()
        block.attn.qkv.bias[:32] = 1.0
        caught: dict[str, Tensor] = {}
        hook = block.register_forward_pre_hook(lambda _, inputs: caught.update(tokens=inputs[0]))
        backbone.tokens(images)
        hook.remove()
        normed = block.norm1(caught["tokens"])[0]  # (1 + 20, 32)
        place = 1 + 2 * 5 + 1
        others = torch.cat([normed[:place], normed[place + 1 :]])
        block.attn.qkv.weight[32:64] = 5 * (normed[place] - others.mean(0))
    for query in ("cls", (0, 0), (3, 4)):
        maps = attention_maps(backbone, images, query=query)
        assert maps.shape == (1, 2, 4, 5)
        assert (maps[0, :, 2, 1] > 0.95).all()
    assert math.isclose(attention_rollout(backbone, images)[0, 2, 1].item(), 0.5, abs_tol=0.03)


def test_what_can_not_be_asked_is_told() -> None:
    swin, images = vitdense.create_backbone("swin_nano"), torch.randn(1, 3, 64, 64)
    with pytest.raises(UserError, match="no class token: ask for mean"):
        attention_maps(swin, images, query="cls")
    with pytest.raises(UserError, match="no layer 99: Swin has 8, 0 to 7"):
        attention_maps(swin, images, layer=99)
    with pytest.raises(UserError, match="no cell 7,0: the layer has 2 rows and 2 columns"):
        attention_maps(swin, images, query=(7, 0))
    with pytest.raises(UserError, match="does not tell what it attends to"):
        attention_maps(vitdense.create_backbone("timm/resnet10t"), images)
    with pytest.raises(UserError, match="expected cls, mean, or ROW,COLUMN"):
        parse_query("3x7")
    assert parse_query("3,7") == (3, 7)

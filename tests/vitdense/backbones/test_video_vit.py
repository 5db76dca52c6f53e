"""What holds for every backbone of clips and volumes: true levels at any size and length, gradients, tracing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitdense
from vitdense.backbones import VideoViTConfig
from vitdense.contracts import BACKBONES, Backbone
from vitdense.errors import UserError

CLIPS = [name for name in BACKBONES.names() if issubclass(BACKBONES.find(name)[0], VideoViTConfig)]
NANO = [name for name in CLIPS if "_nano_" in name]
# Every way of attending and every table of positions once: tracing takes long.
TRACED = ("timesformer_nano_patch8", "vivit_nano_patch8", "vjepa2_nano_patch8")
STORED, ODD = (8, 64, 64), (5, 33, 41)


def small(name: str, **options: Any) -> Backbone:
    torch.manual_seed(0)
    return enlivened(BACKBONES.create(name, {"embed_dim": 32, "depth": 2, **options}).build())


def enlivened(backbone: Backbone) -> Backbone:
    """Fresh weights hide faults: biases are zero, and so is what divided attention adds."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.12 * torch.randn(parameter.shape, generator=generator))
    return backbone


def promised(backbone: Backbone, clips: Tensor) -> list[tuple[int, ...]]:
    shapes = []
    for level in backbone.levels:
        assert level.time_stride is not None
        steps = (level.time_stride, level.stride, level.stride)
        cells = [-(-size // step) for size, step in zip(clips.shape[2:], steps, strict=True)]
        shapes.append((clips.shape[0], level.channels, *cells))
    return shapes


@torch.no_grad()
@pytest.mark.parametrize("name", CLIPS)
def test_levels_are_true_at_full_width(name: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES.create(name, {"depth": 4}).build()
        clips = torch.empty(1, 3, 7, 90, 133)
        assert [tuple(each.shape) for each in backbone(clips)] == promised(backbone, clips)
        assert backbone.embed(clips).shape == (1, backbone.embed_dim)
    assert len(backbone.levels) == 4


@torch.no_grad()
@pytest.mark.parametrize("size", [STORED, ODD, (1, 64, 64), (3, 1, 70), (2, 9, 1), (19, 8, 8), (1, 1, 1)])
@pytest.mark.parametrize("name", NANO)
def test_any_length_and_size_will_do(name: str, size: tuple[int, int, int]) -> None:
    backbone = small(name).eval()
    clips = torch.randn(2, 3, *size)
    maps, tokens = backbone(clips), backbone.tokens(clips)
    assert [tuple(each.shape) for each in maps] == promised(backbone, clips)
    assert tokens.grid == maps[-1].shape[2:]
    if BACKBONES.find(name)[1].get("final_norm", "tokens") == "tokens":
        assert torch.equal(tokens.patches, maps[-1].flatten(2).mT)
    assert backbone.value_tokens(clips).patches.shape == tokens.patches.shape
    again, vector = backbone.maps_and_vector(clips)
    torch.testing.assert_close(vector, backbone.embed(clips))
    assert all(each.isfinite().all() for each in (*again, vector))


@pytest.mark.parametrize("name", NANO)
def test_gradients_reach_what_is_used(name: str) -> None:
    backbone = small(name)
    clips = torch.randn(2, 3, *ODD)
    torch.autograd.backward([each.square().mean() for each in backbone(clips)])
    unused = backbone.unused_in_maps()
    for key, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (key in unused), key
        assert parameter.grad is None or parameter.grad.isfinite().all(), key
        assert 0 <= backbone.layer_of(key) <= backbone.num_layers
    torch.autograd.backward(backbone.embed(clips).square().sum())
    assert all(backbone.get_parameter(key).grad is not None for key in unused)


@torch.no_grad()
@pytest.mark.parametrize("name", NANO)
def test_clips_of_a_batch_do_not_mix(name: str) -> None:
    backbone = small(name).eval()
    clips = torch.randn(3, 3, *ODD)
    together = backbone(clips)
    for i in range(3):
        for alone, each in zip(backbone(clips[i : i + 1]), together, strict=True):
            torch.testing.assert_close(alone[0], each[i], atol=1e-5, rtol=1e-5)
    assert [len(each) for each in backbone(clips[:0])] == [0] * len(together)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(set(NANO) - {"vivit_nano_patch8_factorised", "vit3d_nano_patch8"}))
def test_a_frame_is_seen_from_the_others(name: str) -> None:
    """In the factorised encoder the vector alone sees it; the volume's patches take all eight slices."""
    backbone = small(name).eval()
    clips = torch.randn(1, 3, 8, 16, 16)
    changed = torch.cat([clips[:, :, :6], clips[:, :, 6:] + 1], dim=2)
    assert not torch.allclose(backbone(clips)[-1][:, :, 0], backbone(changed)[-1][:, :, 0], atol=1e-4)


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("channels", [1, 4])
def test_other_input_channels(name: str, channels: int) -> None:
    backbone = small(name, in_channels=channels)
    assert len(backbone(torch.randn(1, channels, 3, 17, 20))) == len(backbone.levels)
    assert len(backbone.mean) == len(backbone.std) == channels
    with pytest.raises(UserError, match=rf"expected clips \(B, {channels}, T, H, W\), given \(1, 3, 3, 17, 20\)"):
        backbone(torch.randn(1, 3, 3, 17, 20))


@pytest.mark.parametrize("name", NANO)
def test_pictures_and_empty_clips_are_refused(name: str) -> None:
    backbone = small(name)
    with pytest.raises(UserError, match=r"expected clips \(B, 3, T, H, W\), given \(1, 3, 32, 32\)"):
        backbone(torch.randn(1, 3, 32, 32))
    for size in ((0, 32, 32), (4, 0, 32), (4, 32, 0)):
        with pytest.raises(UserError, match="expected clips of one frame and one pixel at least"):
            backbone(torch.randn(1, 3, *size))


@torch.no_grad()
def test_clips_are_padded_with_their_last_frame_and_volumes_with_zeros() -> None:
    clips = torch.randn(1, 3, 3, 16, 16)
    again = torch.cat([clips, clips[:, :, -1:]], dim=2)
    blank = torch.cat([clips, torch.zeros_like(clips[:, :, -1:])], dim=2)
    of_clips = small("vivit_nano_patch8").eval()
    of_volumes = small("vit3d_nano_patch8", tubelet=2).eval()
    assert torch.equal(of_clips(clips)[-1], of_clips(again)[-1])
    assert torch.equal(of_volumes(clips)[-1], of_volumes(blank)[-1])


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"tubelet": 2},
        {"positions": "sincos"},
        {"positions": "none", "relations": "rope_axes"},
        {"attention": "divided", "position_tables": "divided", "tubelet": 2},
        {"cls_token": True, "pool": "cls", "positions": "none", "relations": "rope_axes"},
        {"in_channels": 4, "positions": "sincos", "tubelet": 4},
    ],
)
def test_volumes_take_any_patch_and_position(options: dict[str, Any]) -> None:
    backbone = small("vit3d_nano_patch8", **options).eval()
    volume = torch.randn(1, options.get("in_channels", 3), 11, 20, 17)
    assert [tuple(each.shape) for each in backbone(volume)] == promised(backbone, volume)
    turned = backbone(volume.flip(2))[-1]
    assert not torch.allclose(turned.flip(2), backbone(volume)[-1], atol=1e-4), "the places of slices are not told"


@torch.no_grad()
@pytest.mark.parametrize("name", NANO)
def test_one_graph_gives_eager_numbers(name: str) -> None:
    backbone = small(name).eval()
    torch.compiler.reset()
    compiled: Any = torch.compile(backbone, fullgraph=True, backend="eager")
    clips = torch.randn(2, 3, *ODD)
    torch.testing.assert_close(compiled(clips), backbone(clips), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", TRACED)
def test_an_exported_backbone_takes_other_lengths_and_sizes(name: str) -> None:
    backbone = small(name).eval()
    free = torch.export.Dim.DYNAMIC
    example = torch.randn(2, 3, 12, 40, 56)
    shapes = ({0: free, 2: free, 3: free, 4: free},)
    exported = torch.export.export(backbone, (example,), dynamic_shapes=shapes)
    for batch, *size in ((2, 12, 40, 56), (3, 17, 35, 51), (1, 22, 64, 24)):
        clips = torch.randn(batch, 3, *size)
        torch.testing.assert_close(exported.module()(clips), backbone(clips), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NANO)
def test_autocast_stays_near(name: str) -> None:
    backbone = small(name).eval()
    clips = torch.randn(2, 3, *ODD)
    with torch.autocast("cpu", torch.bfloat16):
        rough = backbone(clips)
    for each, exact in zip(rough, backbone(clips), strict=True):
        error = (each.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert error < 0.05, f"{error:.3f}"


@pytest.mark.parametrize("name", NANO)
def test_recomputing_gives_equal_gradients(name: str) -> None:
    clips, found = torch.randn(2, 3, 4, 17, 24, dtype=torch.float64), []
    for again in (False, True):
        backbone = small(name, grad_checkpointing=again, drop_path=0.3).double()
        torch.manual_seed(1)
        loss = backbone.embed(clips).square().sum() + sum(each.square().mean() for each in backbone(clips))
        found.append(torch.autograd.grad(loss, list(backbone.parameters())))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", NANO)
def test_frozen_stages_have_no_gradient(name: str) -> None:
    backbone: Any = small(name, frozen_stages=2).train()
    assert not any(p.requires_grad for key, p in backbone.named_parameters() if backbone.layer_of(key) <= 1)
    assert all(p.requires_grad for p in backbone.blocks[1].parameters())


def test_tables_and_tokens_are_not_decayed() -> None:
    named = {name: BACKBONES.create(name).build().no_decay() for name in NANO}
    assert named["timesformer_nano_patch8"] == {"pos_embed", "time_embed", "cls_token"}
    assert named["vivit_nano_patch8_factorised"] == {"pos_embed", "time_embed", "cls_token", "time_token"}
    assert named["vjepa2_nano_patch8"] == set()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vivit_nano_patch8", {"relations": "table"}, 'attention "joint" is over time and space at once'),
        ("vivit_nano_patch8", {"attention": "dot_product"}, 'attention "dot_product" needs an even num_heads'),
        ("vivit_nano_patch8", {"position_tables": "index"}, 'positions "learned" have position_tables "joint" or'),
        ("vivit_nano_patch8", {"attention": "factorised_encoder"}, 'position_tables must be "divided"'),
        (
            "vivit_nano_patch8",
            {"stem": "conv", "tubelet": 3},
            "a convolution stem needs a tubelet of 2, 4, 8, 16 or 32",
        ),
        (
            "vivit_nano_patch8",
            {"stem": "conv", "tubelet": 16},
            "halves time no more than space: tubelet 16, patch size 8",
        ),
        ("vjepa2_nano_patch8", {"num_heads": 16}, "rope_axes needs heads of at least 6 channels"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vitdense.create_backbone(name, **options)


@pytest.mark.parametrize(("patch", "tubelet"), [(8, 1), (8, 2), (8, 8), (4, 4), (2, 2), (2, 1)])
@torch.no_grad()
def test_a_stem_of_convolutions_gives_the_same_levels_and_looks_no_further(patch: int, tubelet: int) -> None:
    options = {"patch_size": patch, "tubelet": tubelet, "depth": 1}
    strided = BACKBONES.create("vivit_nano_patch8", options).build()
    backbone: Any = BACKBONES.create("vivit_nano_patch8", {**options, "stem": "conv"}).build().eval()
    assert backbone.levels == strided.levels
    clips = torch.randn(1, 3, 5, 19, 26)
    assert [each.shape for each in backbone(clips)] == [each.shape for each in strided.eval()(clips)]
    changed = clips.clone()
    changed[:, :, 4:, 16:, 24:] += 1.0
    moved = (backbone.patch_embed(changed) - backbone.patch_embed(clips)).abs().amax(dim=(0, -1))  # (T', H', W')
    assert moved[4 // tubelet, 16 // patch, 24 // patch] > 0
    assert moved[0, 0, 0] == 0 or tubelet == 8


@torch.no_grad()
def test_a_model_normalises_clips_as_pictures() -> None:
    """Channels stand before the frames, so that statistics of pictures would meet rows."""
    backbone = BACKBONES.create("timesformer_nano_patch8", {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 4.0)}).build()
    clips = torch.randint(0, 256, (2, 3, 5, 6, 7), dtype=torch.uint8)
    model = nn.Module()
    model.register_buffer("mean", torch.tensor(backbone.mean).view(-1, 1, 1, 1))
    model.register_buffer("std", torch.tensor(backbone.std).view(-1, 1, 1, 1))
    found = vitdense.Model.normalise(model, clips)  # type: ignore[arg-type]
    for channel, (mean, std) in enumerate(zip(backbone.mean, backbone.std, strict=True)):
        torch.testing.assert_close(found[:, channel], (clips[:, channel] / 255 - mean) / std)

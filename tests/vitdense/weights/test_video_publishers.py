"""Checkpoints of TimeSformer's, VideoMAE's and V-JEPA 2's authors, under the names and wrappers of their files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitdense.contracts import BACKBONES, Backbone
from vitdense.errors import WeightsError
from vitdense.weights import read_weights

Fill = Callable[..., Backbone]
Enliven = Callable[[nn.Module], nn.Module]
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def ours(name: str, enliven: Enliven, **options: Any) -> Any:
    return enliven(BACKBONES.create(name, {**SMALL, **options}).build())


def clip() -> Tensor:
    return torch.randn(1, 3, 4, 24, 32, generator=torch.Generator().manual_seed(7))


def assert_same(found: Any, expected: Any) -> None:
    clips = clip()
    with torch.no_grad():
        assert torch.equal(found(clips)[-1], expected(clips)[-1])
        assert torch.equal(found.embed(clips), expected.embed(clips))
        assert float(found.embed(clips).abs().mean()) > 0.1


def test_timesformers_authors(enliven: Enliven, fill: Fill, tmp_path: Path) -> None:
    """Below "model." in a training's file, with a picture's kernel and a classifier."""
    expected = ours("timesformer_nano_patch8", enliven, frames=6, image_size=48)
    state = {f"model.{key}": tensor for key, tensor in expected.state_dict().items()}
    state["model.patch_embed.proj.weight"] = state["model.patch_embed.proj.weight"][:, :, 0]
    state |= {"model.head.weight": torch.zeros(5, 32), "model.head.bias": torch.zeros(5)}
    torch.save({"model_state": state, "epoch": 3}, tmp_path / "TimeSformer_divST_8x32_224_K400.pyth")
    found: Any = fill("timesformer_nano_patch8", tmp_path / "TimeSformer_divST_8x32_224_K400.pyth", SMALL)
    assert found.stored_times == 6
    assert found.stored_grid == 6
    assert found.load_report.left_out == ("model.head.weight", "model.head.bias")
    assert not found.load_report.resized
    assert_same(found, expected)


def test_timesformers_tables_become_those_of_another_length(enliven: Enliven, fill: Fill) -> None:
    state = ours("timesformer_nano_patch8", enliven).state_dict()
    found: Any = fill("timesformer_nano_patch8", state, {**SMALL, "frames": 8})
    assert found.load_report.resized == ("time_embed",)
    nearest = state["time_embed"].repeat_interleave(2, dim=1)
    assert torch.equal(found.time_embed, nearest)


@pytest.mark.parametrize("wrapper", ["model", "module"])
def test_videomaes_fine_tuned(wrapper: str, enliven: Enliven, fill: Fill) -> None:
    """The first version's and the second's have the same names, in different wrappers."""
    expected = ours("videomae_nano_patch8", enliven)
    head = {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}
    found: Any = fill("videomae_nano_patch8", {wrapper: {**expected.state_dict(), **head}}, SMALL)
    assert set(found.load_report.left_out) == head.keys()
    assert_same(found, expected)


def test_videomaes_pretrained_ends_with_a_norm_of_tokens(enliven: Enliven, fill: Fill) -> None:
    expected = ours("videomae_nano_patch8", enliven, final_norm="tokens")
    state = {f"encoder.{key}": tensor for key, tensor in expected.state_dict().items()}
    state |= {"mask_token": torch.zeros(1, 1, 16), "encoder_to_decoder.weight": torch.zeros(16, 32)}
    state |= {"decoder.blocks.0.attn.qkv.weight": torch.zeros(48, 16), "decoder.norm.weight": torch.zeros(16)}
    found: Any = fill("videomae_nano_patch8", {"model": state}, SMALL)
    assert {key.partition(".")[0] for key in found.load_report.left_out} == {
        "mask_token",
        "encoder_to_decoder",
        "decoder",
    }
    assert_same(found, expected)


def test_a_learned_table_of_videomaes(enliven: Enliven, fill: Fill) -> None:
    learned = {"positions": "learned", "position_tables": "joint"}
    expected = ours("videomae_nano_patch8", enliven, **learned)
    assert_same(fill("videomae_nano_patch8", expected.state_dict(), SMALL), expected)


def test_vjepa2s_authors(enliven: Enliven, fill: Fill) -> None:
    """The averaged encoder is what is evaluated; a predictor and the running encoder lie beside it."""
    expected = ours("vjepa2_nano_patch8", enliven)
    average = {f"module.backbone.{key}": tensor for key, tensor in expected.state_dict().items()}
    running = {key: torch.zeros_like(tensor) for key, tensor in average.items()}
    found = fill("vjepa2_nano_patch8", {"encoder": running, "target_encoder": average, "predictor": running}, SMALL)
    assert_same(found, expected)


def test_clips_weights_do_not_fit_a_picture_network(enliven: Enliven, fill: Fill) -> None:
    state = ours("vivit_nano_patch8", enliven).state_dict()
    with pytest.raises(WeightsError, match="of another shape"):
        fill("vit_nano_patch8", state, SMALL)


def test_a_network_without_attention_over_time_is_refused(enliven: Enliven, tmp_path: Path) -> None:
    from transformers import TimesformerConfig, TimesformerModel

    shape: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    theirs = TimesformerModel(TimesformerConfig(**shape, attention_type="space_only"))
    state = theirs.state_dict() | {"embeddings.time_embeddings": torch.zeros(1, 8, 32)}
    theirs.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(WeightsError, match="attention_type 'space_only'; known here: divided_space_time, joint"):
        read_weights(tmp_path, BACKBONES.create("timesformer_base_patch16"))


def test_a_table_that_can_be_read_in_two_ways_is_refused(enliven: Enliven, fill: Fill) -> None:
    """256 patches are 4 x 8 x 8 as stored, and 1 x 16 x 16 for two frames."""
    stored: Any = ours("vivit_nano_patch8", enliven)
    with pytest.raises(WeightsError, match="256 patches, which may be 1 x 16 x 16 or 4 x 8 x 8"):
        fill("vivit_nano_patch8", stored.state_dict(), {**SMALL, "frames": 2})
    found: Any = fill("vivit_nano_patch8", stored.state_dict(), {**SMALL, "frames": 16})
    assert found.load_report.resized == ("pos_embed",)
    rows, table = (each.pos_embed[0, 1:].reshape(-1, 64 * 32) for each in (found, stored))
    torch.testing.assert_close(rows[0], table[0])
    torch.testing.assert_close(rows[1], 0.75 * table[0] + 0.25 * table[1])

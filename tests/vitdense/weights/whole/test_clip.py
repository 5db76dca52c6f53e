"""transformers' CLIP, loaded whole from what save_pretrained wrote: embeddings, logits, the pictures' processor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

import vitdense
from vitdense.errors import UserError, WeightsError
from vitdense.weights.rows import translate
from vitdense.weights.whole.clip import HEAD

SINGLE = 1e-5
END = 49407
Enliven = Callable[[nn.Module], nn.Module]
Apart = Callable[[list[Tensor], list[Tensor]], float]
# Text and vision options, the width of the common space.
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "quick gelu": ({"hidden_act": "quick_gelu", "vocab_size": END + 1}, {"patch_size": 8, "image_size": 32}, 24),
    "gelu": (
        {"hidden_act": "gelu", "num_hidden_layers": 3, "max_position_embeddings": 20, "eos_token_id": 7},
        {"hidden_act": "gelu", "patch_size": 7, "image_size": 28, "hidden_size": 48, "intermediate_size": 100},
        32,
    ),
    "eos of old files": ({"eos_token_id": 2, "vocab_size": 300}, {"patch_size": 16, "image_size": 80}, 40),
}


def clip(name: str, folder: Path, enliven: Enliven) -> Any:
    text, vision, dim = CONFIGS[name]
    small = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = CLIPConfig(
        text_config={"hidden_size": 32, "vocab_size": 1000, "max_position_embeddings": 16, **small, **text},
        vision_config={"hidden_size": 64, **small, **vision},
        projection_dim=dim,
    )
    theirs: Any = enliven(CLIPModel(config))
    theirs.save_pretrained(folder)
    return theirs


def texts(vocab: int, length: int, end: int) -> Tensor:
    """Three rows that end early, late, and at the last column; what is behind the end is not 0 everywhere."""
    tokens = torch.randint(8, vocab - 1, (3, length), generator=torch.Generator().manual_seed(1))
    for row, column in enumerate((3, length - 2, length - 1)):
        tokens[row, column] = end
    return tokens


def pictures(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_and_logits_equal_transformers(name: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs = clip(name, tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    text, vision = theirs.config.text_config, theirs.config.vision_config
    end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    tokens = texts(text.vocab_size, text.max_position_embeddings, end)
    images = pictures(vision.image_size, vision.image_size)
    found = theirs(input_ids=tokens, pixel_values=ours.normalise(images))
    assert apart([ours.encode_image(images)], [found.image_embeds]) < SINGLE
    assert apart([ours.encode_text(tokens)], [found.text_embeds]) < SINGLE
    outputs = ours({"images": images, "tokens": tokens})
    logits = outputs["logit_scale"] * outputs["image_embeddings"] @ outputs["text_embeddings"].T
    assert apart([logits], [found.logits_per_image]) < SINGLE
    raw = theirs.get_image_features(ours.normalise(images)), theirs.get_text_features(tokens)
    mine = [ours.encode_image(images, normalize=False), ours.encode_text(tokens, normalize=False)]
    assert apart(mine, [each.pooler_output for each in raw]) < SINGLE


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_pictures_of_another_size_have_resized_positions(
    name: str, enliven: Enliven, apart: Apart, tmp_path: Path
) -> None:
    """transformers leaves away what is no whole patch; here it is padded, so that the reference sees it padded."""
    theirs = clip(name, tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    patch = theirs.config.vision_config.patch_size
    for height, width in ((51, 85), (64, 40)):
        images = pictures(height, width)
        padded = F.pad(ours.normalise(images), (0, -width % patch, 0, -height % patch))
        with pytest.raises(ValueError, match="doesn't match model"):
            theirs.get_image_features(padded)
        expected = theirs.get_image_features(padded, interpolate_pos_encoding=True).pooler_output
        assert apart([ours.encode_image(images, normalize=False)], [expected]) < SINGLE


@torch.no_grad()
def test_texts_are_tokenized_as_the_reference_reads_them(enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    import open_clip

    theirs = clip("quick gelu", tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    words = ["a cat", "two dogs on a long green lawn, and a third dog that nobody sees for the trees before it"]
    tokens = open_clip.SimpleTokenizer(context_length=16)(words)
    expected = theirs.get_text_features(tokens).pooler_output
    assert apart([ours.encode_text(words, normalize=False)], [expected]) < SINGLE


@torch.no_grad()
def test_bytes_are_pictures_too(enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    clip("gelu", tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    images = (pictures(28, 28) * 255).round().to(torch.uint8)
    assert apart([ours.encode_image(images)], [ours.encode_image(images / 255)]) < SINGLE


@torch.no_grad()
def test_names_in_memory_and_counters_of_old_files(enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    theirs = clip("gelu", tmp_path, enliven)
    counters = {f"{tower}_model.embeddings.position_ids": torch.arange(3)[None] for tower in ("text", "vision")}
    save_file(
        {key: tensor.clone() for key, tensor in theirs.state_dict().items()} | counters, tmp_path / "model.safetensors"
    )
    ours: Any = vitdense.load_model(tmp_path)
    images = pictures(28, 28)
    expected = theirs.get_image_features(ours.normalise(images)).pooler_output
    assert apart([ours.encode_image(images, normalize=False)], [expected]) < SINGLE


def test_every_key_is_accounted_for(enliven: Enliven, tmp_path: Path) -> None:
    theirs = clip("gelu", tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    report = ours.backbone.load_report
    assert set(report.matched) == set(ours.backbone.state_dict())
    assert not report.fresh + report.left_out + report.resized + report.adapted
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("text_projection.weight", "lacks text_projection.weight"),
        ("text_model.encoder.layers.1.mlp.fc1.bias", "missing text.blocks.1.mlp.fc1.bias"),
        ("vision_model.encoder.layers.1.mlp.fc1.bias", "1 missing: blocks.1.mlp.fc1.bias"),
        ("logit_scale", "missing logit_scale"),
    ],
)
def test_a_missing_key_is_named(key: str, told: str, enliven: Enliven, tmp_path: Path) -> None:
    clip("gelu", tmp_path, enliven)
    state = load_file(tmp_path / "model.safetensors")
    del state[key]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=told):
        vitdense.load_model(tmp_path)


@pytest.mark.parametrize("key", ["extra.weight", "text_model.encoder.layers.0.gate", "vision_model.other.weight"])
def test_a_key_that_is_left_over_is_named(key: str, enliven: Enliven, tmp_path: Path) -> None:
    clip("gelu", tmp_path, enliven)
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, key: torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=key.removeprefix("vision_model.")):
        vitdense.load_model(tmp_path)


def test_the_table_reads_both_ways(enliven: Enliven, tmp_path: Path) -> None:
    theirs = clip("gelu", tmp_path, enliven)
    ours: Any = vitdense.load_model(tmp_path)
    back = translate(ours.head.state_dict(), HEAD, "out")
    given = {key: tensor for key, tensor in theirs.state_dict().items() if not key.startswith("vision_model.")}
    assert not back.strange
    assert back.state.keys() == given.keys()
    assert all(torch.equal(back.state[key], given[key]) for key in given)


def test_what_is_done_to_pictures_is_read_from_the_processor(enliven: Enliven, tmp_path: Path) -> None:
    clip("gelu", tmp_path, enliven)
    default: Any = vitdense.load_model(tmp_path)
    assert (default.preprocess.size, default.preprocess.mode) == ((28, 28), "shortest")
    assert default.backbone.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    said = {"size": 40, "crop_size": {"height": 35, "width": 35}, "resample": 2, "image_mean": [0.1, 0.2, 0.3]}
    facts = {"do_resize": True, "do_center_crop": True, "image_std": [0.4, 0.5, 0.6], **said}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    ours: Any = vitdense.load_model(tmp_path)
    assert ours.backbone.mean == (0.1, 0.2, 0.3)
    assert (ours.preprocess.short_side, ours.preprocess.size, ours.preprocess.interpolation) == (
        40,
        (35, 35),
        "bilinear",
    )
    # As transformers 5 writes it, under a name beside the texts' facts.
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": facts}))
    assert vitdense.load_model(tmp_path).preprocess == ours.preprocess


def test_what_cannot_be_set_is_refused(enliven: Enliven, tmp_path: Path) -> None:
    clip("gelu", tmp_path, enliven)
    with pytest.raises(UserError, match="is no model of open_clip's"):
        vitdense.load_model(tmp_path, ["architecture=ViT-B-32"])
    with pytest.raises(UserError, match="head can't be set"):
        vitdense.load_model(tmp_path, ["head.dim=3"])


@torch.no_grad()
def test_a_tower_goes_under_other_heads_by_folder(enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    clip("quick gelu", tmp_path, enliven)
    small: Any = {"embed_dim": 64, "depth": 2, "num_heads": 4, "patch_size": 8, "image_size": 32, "mlp_ratio": 1.5}
    alone = vitdense.create_backbone("clip_base_patch16", weights=tmp_path, **small).eval()
    whole: Any = vitdense.load_model(tmp_path)
    images = pictures(40, 56)
    assert apart([alone.embed(images)], [whole.backbone.embed(images)]) == 0

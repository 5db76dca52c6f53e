"""open_clip's CoCa, loaded whole: folders, files, names; embeddings, captions and losses are the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vitdense
from vitdense.errors import UserError, WeightsError
from vitdense.weights.rows import translate
from vitdense.weights.whole.open_clip_coca import DECODER, POOL

SINGLE = 1e-5
Enliven = Callable[[nn.Module], nn.Module]
Apart = Callable[[list[Tensor], list[Tensor]], float]

VISION: dict[str, Any] = {
    "layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32, "attentional_pool": True,
    "attn_pooler_heads": 3, "attn_pooler_queries": 7, "output_tokens": True,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "context_length": 11, "vocab_size": 99, "width": 48, "heads": 4, "layers": 2, "embed_cls": True,
    "output_tokens": True,
}  # fmt: skip
DECODER_OF: dict[str, Any] = {"context_length": 11, "vocab_size": 99, "width": 48, "heads": 2, "layers": 3}
MODELS: dict[str, dict[str, Any]] = {
    "coca": {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT, "multimodal_cfg": DECODER_OF},
    "quick gelu": {
        "embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT, "multimodal_cfg": DECODER_OF, "quick_gelu": True,
    },
    "one width": {
        "embed_dim": 64, "vision_cfg": VISION | {"attn_pooler_heads": 4}, "text_cfg": TEXT | {"width": 64},
        "multimodal_cfg": DECODER_OF | {"width": 64, "heads": 4},
    },
    "odd size": {
        "embed_dim": 48, "vision_cfg": VISION | {"image_size": 61, "patch_size": 14}, "text_cfg": TEXT,
        "multimodal_cfg": DECODER_OF,
    },
}  # fmt: skip


def build(described: dict[str, Any], enliven: Enliven) -> Any:
    made: Any = enliven(open_clip.CoCa(**described)).eval()
    made.logit_scale.data.fill_(3.0)
    return made


def publish(theirs: nn.Module, described: dict[str, Any], folder: Path) -> Path:
    config = {"model_cfg": {**described, "custom_text": True}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {key: each.contiguous() for key, each in theirs.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def words() -> Tensor:
    tokens = torch.randint(2, 97, (3, 11), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 97
    for row, length in enumerate((4, 9, 11)):
        tokens[row, length - 1], tokens[row, length:] = 98, 0
    return tokens


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_equals_open_clip(name: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    described = MODELS[name]
    theirs = build(described, enliven)
    ours: Any = vitdense.load_model(publish(theirs, described, tmp_path))
    side = described["vision_cfg"]["image_size"] // described["vision_cfg"]["patch_size"]
    side *= described["vision_cfg"]["patch_size"]
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(2))
    expected, outputs = theirs(ours.normalise(images), words()), ours({"images": images, "tokens": words()})
    raw = ours.encode_image(images, normalize=False), ours.encode_text(words(), normalize=False)
    shown = ours.normalise(images)
    assert apart([raw[0]], [theirs.encode_image(shown, normalize=False)]) < SINGLE
    assert apart([raw[1]], [theirs.encode_text(words(), normalize=False)]) < SINGLE
    assert torch.allclose(outputs["image_embeddings"], expected["image_features"], atol=SINGLE)
    assert torch.allclose(outputs["text_embeddings"], expected["text_features"], atol=SINGLE)
    assert outputs["caption_logits"].std() > 0.1
    assert apart([outputs["caption_logits"]], [expected["logits"]]) < SINGLE
    assert torch.allclose(outputs["logit_scale"], expected["logit_scale"])
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert (ours.head.start_token, ours.head.stop_token) == (97, 98)


def test_tables_are_read_both_ways(enliven: Enliven) -> None:
    for name in ("coca", "one width"):
        state = build(MODELS[name], enliven).state_dict()
        kept = {k: each for k, each in state.items() if k.startswith(("visual.attn_pool.", "text_decoder."))}
        kept = {k: each for k, each in kept.items() if ".ln_k." not in k}
        inside = translate(kept, POOL + DECODER, "in")
        assert not inside.strange
        if name == "coca":
            back = translate(inside.state, POOL + DECODER, "out").state
            assert back.keys() == kept.keys()
            assert all(torch.equal(each, kept[key]) for key, each in back.items())


def test_a_file_is_told_by_its_shapes_or_by_its_model(enliven: Enliven, tmp_path: Path, monkeypatch: Any) -> None:
    theirs = build(MODELS["coca"], enliven)
    path = tmp_path / "coca.pt"
    torch.save({"state_dict": {f"module.{key}": each for key, each in theirs.state_dict().items()}}, path)
    with pytest.raises(WeightsError, match="is a CoCa that says nothing of its heads"):
        vitdense.load_model(path)
    monkeypatch.setattr(open_clip, "list_models", lambda: ["ViT-B-32", "coca_tiny"])
    real = open_clip.get_model_config
    monkeypatch.setattr(
        open_clip, "get_model_config", lambda name: MODELS["coca"] if name == "coca_tiny" else real(name)
    )
    found: Any = vitdense.load_model(path)
    assert torch.equal(found.head.pool.query, theirs.visual.attn_pool.query)
    assert found.head.decoder.cross_blocks[2].attn.num_heads == 2


@pytest.mark.parametrize(
    ("part", "said", "message"),
    [
        ("vision_cfg", {"attentional_pool": "parallel"}, "has attentional_pool 'parallel'; known here: True"),
        ("vision_cfg", {"pool_type": "avg"}, "has pool_type 'avg'"),
        ("text_cfg", {"act_kwargs": {"approximate": "tanh"}}, "has act_kwargs"),
        ("text_cfg", {"pad_id": 1}, "has pad_id 1; known here: 0"),
    ],
)
def test_what_head_coca_has_not_is_refused(
    part: str, said: dict[str, Any], message: str, enliven: Enliven, tmp_path: Path
) -> None:
    described = MODELS["coca"]
    publish(build(described, enliven), {**described, part: {**described[part], **said}}, tmp_path)
    with pytest.raises(WeightsError, match=message):
        vitdense.load_model(tmp_path)


def test_tensors_that_are_missing_or_strange_are_named(enliven: Enliven, tmp_path: Path) -> None:
    theirs = build(MODELS["coca"], enliven)
    publish(theirs, MODELS["coca"], tmp_path)
    state = {key: each.contiguous() for key, each in theirs.state_dict().items()}
    file = tmp_path / "open_clip_model.safetensors"
    save_file({k: each for k, each in state.items() if k != "visual.attn_pool.query"}, file)
    with pytest.raises(WeightsError, match=r"lacks visual\.attn_pool\.query of its CoCa"):
        vitdense.load_model(tmp_path)
    save_file({**state, "text_decoder.odd": torch.ones(1)}, file)
    with pytest.raises(WeightsError, match=r"belong to no part of its CoCa: text_decoder\.odd"):
        vitdense.load_model(tmp_path)
    save_file({k: each for k, each in state.items() if "cross_attn.2.ln_1_kv" not in k}, file)
    with pytest.raises(UserError, match=r"coca.*missing decoder\.cross_blocks\.2\.norm_kv"):
        vitdense.load_model(tmp_path)

"""open_clip's models, loaded whole: folders, files, OpenAI's own, names; towers of timm and ResNets."""

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
from vitdense.weights.whole.open_clip import LAYER, MATRIX

SINGLE = 1e-5
Enliven = Callable[[nn.Module], nn.Module]
Apart = Callable[[list[Tensor], list[Tensor]], float]

VISION: dict[str, Any] = {"layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT: dict[str, Any] = {"context_length": 16, "vocab_size": 300, "width": 32, "heads": 4, "layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "gelu": {"vision_cfg": VISION, "text_cfg": TEXT},
    "quick gelu": {"vision_cfg": VISION | {"mlp_ratio": 2.7}, "text_cfg": TEXT | {"heads": 2}, "quick_gelu": True},
    "odd size": {"vision_cfg": VISION | {"image_size": 61, "patch_size": 14}, "text_cfg": TEXT | {"layers": 3}},
    "layer scale": {"vision_cfg": VISION | {"ls_init_value": 1e-4}, "text_cfg": TEXT},
    "clipa": {
        "vision_cfg": VISION | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": TEXT | {"pool_type": "last", "no_causal_mask": True},
    },
    "worldwide": {"vision_cfg": VISION, "text_cfg": TEXT | {"pool_type": "eos", "eos_id": 1}},
    "mean of normed": {"vision_cfg": VISION | {"pool_type": "avg"}, "text_cfg": TEXT},
    "a bias of logits": {"vision_cfg": VISION, "text_cfg": TEXT, "init_logit_bias": -10.0},
    "texts of SigLIP": {
        "vision_cfg": VISION,
        "text_cfg": TEXT
        | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
        | {"act_kwargs": {"approximate": "tanh"}},
        "init_logit_bias": -10.0,
        "nonscalar_logit_scale": True,
        "custom_text": True,
    },
    "texts apart": {"vision_cfg": VISION, "text_cfg": TEXT, "custom_text": True},
}


def build(described: dict[str, Any], enliven: Enliven, dim: int = 24) -> Any:
    options = {key: value for key, value in described.items() if key != "custom_text"}
    kind: Any = open_clip.CustomTextCLIP if described.get("custom_text") else open_clip.CLIP
    made: Any = enliven(kind(embed_dim=dim, **options))
    made.logit_scale.data.fill_(3.0)
    return made


def publish(theirs: nn.Module, described: dict[str, Any], folder: Path, pixels: dict[str, Any] | None = None) -> Path:
    """A folder as open_clip's push_to_hf_hub writes it."""
    config = {"model_cfg": {"embed_dim": 24, **described}, "preprocess_cfg": pixels or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {key: each.contiguous() for key, each in theirs.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


def draw(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))


def words(end: int = 299) -> Tensor:
    tokens = torch.randint(2, 299, (3, 16), generator=torch.Generator().manual_seed(1))
    for row, column in enumerate((3, 14, 15)):
        tokens[row, column] = end
    return tokens


def differ(ours: Any, theirs: Any, apart: Apart, side: int, tokens: Tensor | None = None) -> float:
    """How far embeddings, raw and of unit length, and logits are apart."""
    images, tokens = draw(side, side), words() if tokens is None else tokens
    shown = ours.normalise(images)
    raw = apart(
        [ours.encode_image(images, normalize=False), ours.encode_text(tokens, normalize=False)],
        [theirs.encode_image(shown), theirs.encode_text(tokens)],
    )
    outputs = ours({"images": images, "tokens": tokens})
    logits = outputs["logit_scale"] * outputs["image_embeddings"] @ outputs["text_embeddings"].T
    logits = logits + outputs.get("logit_bias", 0)
    return max(raw, apart([logits], [theirs.get_logits(shown, tokens)[0]]))


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_equals_open_clip(name: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    described = MODELS[name]
    theirs = build(described, enliven)
    ours: Any = vitdense.load_model(publish(theirs, described, tmp_path))
    tokens = words(1) if name == "worldwide" else words()
    side = described["vision_cfg"]["image_size"] // described["vision_cfg"]["patch_size"]
    side *= described["vision_cfg"]["patch_size"]  # their convolution leaves the rest away
    assert differ(ours, theirs, apart, side, tokens) < SINGLE
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert set(ours.backbone.load_report.matched) == set(ours.backbone.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("name", ["gelu", "clipa"])
def test_pictures_of_another_size_equal_a_model_made_for_it(
    name: str, enliven: Enliven, apart: Apart, tmp_path: Path
) -> None:
    """open_clip takes one size; for another it resizes positions as it loads."""
    described = MODELS[name]
    theirs = build(described, enliven)
    ours: Any = vitdense.load_model(publish(theirs, described, tmp_path))
    larger = build(described | {"vision_cfg": described["vision_cfg"] | {"image_size": (56, 88)}}, enliven)
    with pytest.raises(RuntimeError):
        theirs.encode_image(draw(56, 88))
    open_clip.load_checkpoint(larger, str(tmp_path / "open_clip_model.safetensors"))
    images = draw(53, 85)  # which our tower pads
    padded = nn.functional.pad(ours.normalise(images), (0, 3, 0, 3))
    assert apart([ours.encode_image(images, normalize=False)], [larger.encode_image(padded)]) < SINGLE


@torch.no_grad()
@pytest.mark.parametrize("wrapped", ["bare", "module", "state_dict", "pickle in a folder"])
def test_files_of_trainings(wrapped: str, enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    described = {"vision_cfg": VISION | {"head_width": 64}, "text_cfg": TEXT | {"width": 64, "heads": 1}}
    theirs = build(described, enliven)
    state = theirs.state_dict()
    path = tmp_path / "epoch_3.pt"
    if wrapped == "pickle in a folder":
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
        path = tmp_path
        torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    elif wrapped == "bare":
        torch.save(state, path)
    else:
        state = {f"module.{key}": tensor for key, tensor in state.items()}
        torch.save({"epoch": 3, "name": "x", "state_dict": state} if wrapped == "state_dict" else state, path)
    ours: Any = vitdense.load_model(path)
    assert differ(ours, theirs, apart, 32) < SINGLE
    granted = "taken for granted: activation gelu, heads of 64 channels"
    assert (granted in str(ours.backbone.load_report)) == (wrapped != "pickle in a folder")


@torch.no_grad()
def test_openais_marks_mean_quick_gelu(enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    described = {"vision_cfg": VISION | {"head_width": 64}, "text_cfg": TEXT | {"width": 64, "heads": 1}}
    theirs = build(described | {"quick_gelu": True}, enliven)
    marks = {"input_resolution": 32, "context_length": 16, "vocab_size": 300}
    state = {**theirs.state_dict(), **{name: torch.tensor(number) for name, number in marks.items()}}
    torch.save(state, tmp_path / "ViT-N-8.pt")
    ours: Any = vitdense.load_model(tmp_path / "ViT-N-8.pt")
    assert differ(ours, theirs, apart, 32) < SINGLE
    assert ours.backbone.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    # As they come, in half precision.
    torch.save(
        {key: each.half() if each.is_floating_point() else each for key, each in state.items()}, tmp_path / "h.pt"
    )
    half: Any = vitdense.load_model(tmp_path / "h.pt")
    assert half.head.text_proj.weight.dtype == torch.float32
    assert torch.equal(half.head.text_proj.weight, ours.head.text_proj.weight.half().float())


def tiny_config(folder: Path, name: str, described: dict[str, Any]) -> str:
    (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 24, **described}))
    open_clip.add_model_config(folder / f"{name}.json")
    return name


@torch.no_grad()
def test_an_architecture_says_what_tensors_don_t(enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    described = MODELS["quick gelu"]
    theirs = build(described, enliven)
    name = tiny_config(tmp_path, "ViT-nano-8-quickgelu", described)
    torch.save(theirs.state_dict(), tmp_path / "file.pt")
    ours: Any = vitdense.load_model(tmp_path / "file.pt", [f"architecture={name}"])
    assert differ(ours, theirs, apart, 32) < SINGLE
    with pytest.raises(UserError, match="open_clip has no model 'ViT-nono-8'; did you mean"):
        vitdense.load_model(tmp_path / "file.pt", ["architecture=ViT-nono-8"])


@torch.no_grad()
def test_a_file_is_recognised_by_its_shapes(enliven: Enliven, apart: Apart, tmp_path: Path) -> None:
    """Heads of 16 channels, which nothing but a model of these shapes tells."""
    described = {"vision_cfg": VISION | {"width": 96, "layers": 3}, "text_cfg": TEXT | {"vocab_size": 311}}
    theirs = build(described, enliven)
    torch.save(theirs.state_dict(), tmp_path / "file.pt")
    with pytest.raises(WeightsError, match="widths of 96 and 32 channels"):
        vitdense.load_model(tmp_path / "file.pt")
    tiny_config(tmp_path, "ViT-nano-8-wide", described)
    tiny_config(tmp_path, "ViT-nano-8-wide-quickgelu", described | {"quick_gelu": True})
    ours: Any = vitdense.load_model(tmp_path / "file.pt")
    assert differ(ours, theirs, apart, 32) < SINGLE
    assert "(taken for granted: activation gelu)" in str(ours.backbone.load_report)
    tiny_config(tmp_path, "ViT-nano-8-eos", described | {"text_cfg": described["text_cfg"] | {"pool_type": "eos"}})
    with pytest.raises(WeightsError, match="may be ViT-nano-8-eos or ViT-nano-8-wide"):
        vitdense.load_model(tmp_path / "file.pt")


@torch.no_grad()
def test_a_name_makes_open_clip_s_own_network(apart: Apart, tmp_path: Path) -> None:
    name = tiny_config(tmp_path, "ViT-nano-8-named", MODELS["gelu"])
    torch.manual_seed(3)
    theirs = open_clip.create_model(name).eval()
    torch.manual_seed(3)
    ours: Any = vitdense.load_model(f"open_clip/{name}")
    assert differ(ours, theirs, apart, 32) < SINGLE


def test_published_weights_need_the_network() -> None:
    with pytest.raises(UserError, match=r"open_clip can't fetch open_clip/ViT-B-32/laion2b_s34b_b79k"):
        vitdense.load_model("open_clip/ViT-B-32/laion2b_s34b_b79k")
    with pytest.raises(UserError, match="has no published weights 'laion3b'; it has: "):
        vitdense.load_model("open_clip/ViT-B-32/laion3b")
    with pytest.raises(UserError, match="open_clip has no model 'ViT-B-33'; did you mean"):
        vitdense.load_model("open_clip/ViT-B-33")


def test_what_is_done_to_pictures_is_read_from_the_config(enliven: Enliven, tmp_path: Path) -> None:
    theirs = build(MODELS["gelu"], enliven)
    pixels = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
    ours: Any = vitdense.load_model(publish(theirs, MODELS["gelu"], tmp_path, pixels))
    assert (ours.backbone.mean, ours.backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (ours.preprocess.size, ours.preprocess.mode) == ((32, 32), "squash")
    assert (ours.preprocess.interpolation, ours.preprocess.like) == ("bilinear", "open_clip")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"multimodal_cfg": {}, "custom_text": True}, None),
        ({"text_cfg": TEXT | {"qk_norm": True}}, "qk_norm True"),
        ({"text_cfg": TEXT | {"pool_type": "first"}}, "pool_type 'first' in its text tower"),
        ({"vision_cfg": VISION | {"scale_fc": True}}, "scale_fc True"),
        ({"vision_cfg": VISION | {"pool_type": "none"}}, "pool_type 'none' in its picture tower"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "text tower that is roberta-base"),
    ],
)
def test_what_is_not_taken_is_named(change: dict[str, Any], told: str | None, enliven: Enliven, tmp_path: Path) -> None:
    theirs = build(MODELS["gelu"], enliven)
    publish(theirs, {**MODELS["gelu"], **change}, tmp_path)
    if told is None:  # an empty description means none
        vitdense.load_model(tmp_path)
        return
    with pytest.raises(WeightsError, match=told):
        vitdense.load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("visual.ln_post.bias", "missing: norm.bias"),
        ("transformer.resblocks.1.mlp.c_fc.bias", "missing text.blocks.1.mlp.fc1.bias"),
        ("visual.proj", "the image tower is 64 wide"),
        ("logit_scale", "lacks what head clip calls logit_scale"),
    ],
)
def test_a_missing_key_is_named(key: str, told: str, enliven: Enliven, tmp_path: Path) -> None:
    theirs = build(MODELS["gelu"], enliven)
    publish(theirs, MODELS["gelu"], tmp_path)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name != key}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=told):
        vitdense.load_model(tmp_path)


@pytest.mark.parametrize("key", ["extra.weight", "visual.extra", "transformer.resblocks.0.ls_1.gamma"])
def test_a_key_that_is_left_over_is_named(key: str, enliven: Enliven, tmp_path: Path) -> None:
    theirs = build(MODELS["gelu"], enliven)
    publish(theirs, MODELS["gelu"], tmp_path)
    save_file({**theirs.state_dict(), key: torch.ones(3)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(WeightsError, match=key.removeprefix("visual.")):
        vitdense.load_model(tmp_path)


@pytest.mark.parametrize(("name", "table"), [("gelu", MATRIX), ("texts of SigLIP", LAYER)])
def test_the_tables_read_both_ways(name: str, table: Any, enliven: Enliven, tmp_path: Path) -> None:
    theirs = build(MODELS[name], enliven)
    ours: Any = vitdense.load_model(publish(theirs, MODELS[name], tmp_path))
    state = {key: each for key, each in ours.head.state_dict().items() if not key.startswith("image_proj.")}
    back = translate(state, table, "out")
    given = {key.removeprefix("text."): each for key, each in theirs.state_dict().items() if "visual." not in key}
    assert back.state.keys() == given.keys()
    assert all(torch.equal(back.state[key].reshape(given[key].shape), given[key]) for key in given)

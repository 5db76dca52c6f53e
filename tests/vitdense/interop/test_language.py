"""Towers in transformers' models of language and pictures: equal features, and text of our tokens."""

import json
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import transformers
from torch import Tensor, nn

import vitdense
from vitdense.contracts import Backbone
from vitdense.errors import UserError
from vitdense.interop.language import VisionTower

hf: Any = transformers
Net = TypeVar("Net", bound=nn.Module)

WIDTH, IMAGE = 48, 7
NANO = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8, "image_size": 48}


def tower_of(name: str, **options: Any) -> Backbone:
    """A tiny backbone whose every weight carries signal."""
    torch.manual_seed(3)
    backbone = vitdense.create_backbone(name, **{**NANO, **options}).eval()
    return shaken(backbone)


def shaken(net: Net) -> Net:
    """Random-normal weights: matrices keep their input's size, norms and tables vary."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(noise * scale + (1 if name.endswith("weight") and parameter.ndim == 1 else 0))
    return net


def language_of(kind: str = "Llama", **options: Any) -> Any:
    shape = {
        "vocab_size": 40,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        **options,
    }
    return shaken(getattr(hf, f"{kind}ForCausalLM")(getattr(hf, f"{kind}Config")(**shape)).eval())


def images_of(size: int = 48) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def compare(tower: VisionTower, folder: Path, language: Any, kind: str) -> Any:
    """Ours and the image features that the written folder computes; gives the model that was read."""
    shaken(tower.projector)
    tower.save_pretrained(folder, language, image_token=IMAGE)
    read, told = getattr(hf, f"{kind}ForConditionalGeneration").from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        ours = tower(images_of())
        theirs = read.eval().get_image_features(pixel_values=images_of()).pooler_output
    theirs = torch.stack(list(theirs))
    assert ours.shape == theirs.shape == (2, tower.count_tokens(), WIDTH)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    return read


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip_base_patch16", {}),
        ("clip_base_patch16", {"select": "full"}),
        ("clip_base_patch16", {"layer": -1}),
        ("clip_base_patch16", {"layer": 1}),
        ("clip_base_patch16", {"layer": [-1, 1, -2]}),
        ("siglip_base_patch16", {}),
        ("siglip_base_patch16", {"layer": -1, "select": "full"}),
    ],
)
def test_llava_computes_the_same_image_features(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    tower = VisionTower(tower_of(name), WIDTH, **options)
    read = compare(tower, tmp_path, language_of(), "Llava")
    assert read.config.vision_feature_layer == options.get("layer", -2)


def test_llava_generates_of_our_tokens(tmp_path: Path) -> None:
    tower, language = VisionTower(tower_of("clip_base_patch16"), WIDTH), language_of()
    read = compare(tower, tmp_path, language, "Llava")
    count = tower.count_tokens()
    text = torch.tensor([[1, *[IMAGE] * count, 5, 9], [1, *[IMAGE] * count, 3, 4]])
    with torch.no_grad():
        theirs = read(input_ids=text, pixel_values=images_of()).logits
        embedded = language.get_input_embeddings()(text)
        embedded[:, 1 : count + 1] = tower(images_of())
        ours = language(inputs_embeds=embedded).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    given = read.generate(input_ids=text, pixel_values=images_of(), max_new_tokens=3, do_sample=False)
    assert given[:, len(text[0])].tolist() == ours[:, -1].argmax(-1).tolist()


def test_the_weights_of_a_tied_language_model_stay_tied(tmp_path: Path) -> None:
    tower, language = VisionTower(tower_of("clip_base_patch16"), WIDTH), language_of(tie_word_embeddings=True)
    read = compare(tower, tmp_path, language, "Llava")
    assert read.lm_head.weight is read.get_input_embeddings().weight
    assert torch.equal(read.lm_head.weight, language.get_input_embeddings().weight)


def test_paligemma_computes_the_same_image_features(tmp_path: Path) -> None:
    tower = VisionTower(tower_of("siglip_base_patch16"), WIDTH, projector="linear")
    compare(tower, tmp_path, language_of("Gemma"), "PaliGemma")


@pytest.mark.parametrize(("name", "factor"), [("siglip_base_patch16", 2), ("clip_base_patch16", 3)])
def test_aya_vision_computes_the_same_image_features(name: str, factor: int, tmp_path: Path) -> None:
    tower = VisionTower(tower_of(name), WIDTH, projector="pixel_shuffle", factor=factor)
    compare(tower, tmp_path, language_of("Cohere2"), "AyaVision")


def test_pixel_shuffle_joins_neighbours_of_grids_that_are_no_squares() -> None:
    tower = VisionTower(tower_of("siglip_base_patch16"), WIDTH, projector="pixel_shuffle").eval()
    wide = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(2))
    assert tower(wide).shape == (1, 2 * 4, WIDTH)
    with pytest.raises(UserError, match=r"pixel_shuffle joins 2 x 2 tokens, and the grid is \(4, 5\)"):
        tower(wide[..., :40])


def test_the_image_processor_lies_beside_the_weights(tmp_path: Path) -> None:
    VisionTower(tower_of("clip_base_patch16"), WIDTH).save_pretrained(tmp_path, language_of(), image_token=IMAGE)
    said = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert said["size"] == {"height": 48, "width": 48}
    processor = hf.AutoImageProcessor.from_pretrained(tmp_path)
    assert processor(torch.zeros(3, 60, 90, dtype=torch.uint8), return_tensors="pt").pixel_values.shape[-2:] == (48, 48)


def test_a_tower_learns_through_its_projector() -> None:
    tower = VisionTower(tower_of("clip_base_patch16"), WIDTH, layer=2)
    tower(images_of()).square().mean().backward()
    silent = {name for name, each in tower.named_parameters() if each.grad is None}
    assert silent == {
        name for name, _ in tower.named_parameters() if name.startswith(("backbone.blocks.2", "backbone.norm."))
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin_nano", {}, "language models of transformers take the towers clip_.* and this is swin_nano"),
        ("vit_nano_patch8", {}, "vit_nano_patch8 is a vit there"),
        ("eva02_tiny_patch14", {}, "can't be written for transformers"),
        ("siglip_base_patch16", {"select": "default"}, "siglip_base_patch16 has none: set 'full'"),
        ("clip_base_patch16", {"projector": "linear"}, "projector linear is PaliGemma's"),
        ("clip_base_patch16", {"projector": "q-former"}, "give one of linear, mlp, pixel_shuffle"),
        ("clip_base_patch16", {"projector": "pixel_shuffle", "select": "full"}, "without the class token"),
        ("clip_base_patch16", {"layer": 4}, "layer 4: the backbone has 3 blocks"),
        ("clip_base_patch16", {"layer": 0}, "layer 0: the backbone has 3 blocks"),
    ],
)
def test_what_no_language_model_takes_is_told(name: str, options: dict[str, Any], message: str) -> None:
    own = ("swin_nano", "vit_nano_patch8", "eva02_tiny_patch14")
    backbone = vitdense.create_backbone(name) if name in own else tower_of(name)
    with pytest.raises(UserError, match=message):
        VisionTower(backbone, WIDTH, **options)


def test_a_language_model_that_does_not_fit_is_told(tmp_path: Path) -> None:
    tower = VisionTower(tower_of("clip_base_patch16"), WIDTH + 2)
    with pytest.raises(UserError, match="LlamaForCausalLM is 48 wide, and the tower projects to 50"):
        tower.save_pretrained(tmp_path, language_of(), image_token=IMAGE)
    tower = VisionTower(tower_of("clip_base_patch16"), WIDTH)
    with pytest.raises(UserError, match="image_token 40: the language model knows 40 tokens"):
        tower.save_pretrained(tmp_path, language_of(), image_token=40)
    linear = VisionTower(tower_of("siglip_base_patch16"), WIDTH, projector="linear")
    with pytest.raises(UserError, match="whose language model is a Gemma; given llama"):
        linear.save_pretrained(tmp_path, language_of(), image_token=IMAGE)

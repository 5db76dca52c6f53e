"""Our models under open_clip's face, in the hands of open_clip's own functions."""

import copy
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip_train.zero_shot import run  # type: ignore[import-untyped]
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import vitdense
from vitdense.contracts import HEADS
from vitdense.errors import UserError
from vitdense.interop.open_clip import FaceTokenizer, OpenClipFace, create_model_and_transforms, image_size_of
from vitdense.model import Model

Publish = Callable[[Path], Any]
OPTIONS = Namespace(device="cpu", precision="fp32", batch_size=8)


@pytest.fixture(scope="module")
def pair(publish_clip: Publish, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """open_clip's model and transform, and ours with the same weights under its face."""
    folder = tmp_path_factory.mktemp("clip")
    theirs = publish_clip(folder)
    transform = open_clip.image_transform((40, 40), False)
    return Namespace(theirs=theirs, transform=transform, ours=create_model_and_transforms(folder), folder=folder)


@torch.no_grad()
def test_both_faces_are_the_same(pair: Any) -> None:
    face, transform, tokenizer = pair.ours
    picture = Image.effect_noise((61, 47), 80).convert("RGB")
    image = pair.transform(picture)[None]
    torch.testing.assert_close(transform(picture)[None], image)
    texts = ["a cat", "", "word " * 10_000, "é 猫"]
    tokens = open_clip.SimpleTokenizer()(texts)
    assert torch.equal(tokenizer(texts), tokens)
    assert torch.equal(tokenizer("a cat"), tokens[:1])
    assert tokenizer.context_length == 77
    for normalize in (False, True):
        for found, expected in (
            (face.encode_image(image, normalize), pair.theirs.encode_image(image, normalize)),
            (face.encode_text(tokens, normalize=normalize), pair.theirs.encode_text(tokens, normalize=normalize)),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(face.visual(image), pair.theirs.visual(image), rtol=0, atol=1e-5)
    torch.testing.assert_close(face.get_logits(image, tokens), pair.theirs.get_logits(image, tokens), rtol=0, atol=1e-4)
    torch.testing.assert_close(face.logit_scale, pair.theirs.logit_scale)
    assert face.visual.image_size == pair.theirs.visual.image_size == (40, 40)


@torch.no_grad()
@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("given", [("image",), ("text",), ("image", "text")])
def test_calls_give_what_open_clips_give(pair: Any, as_dict: bool, given: tuple[str, ...]) -> None:
    inputs = {"image": torch.randn(2, 3, 40, 40), "text": open_clip.SimpleTokenizer()(["a", "b c"])}
    inputs = {name: inputs[name] for name in given}
    face, theirs = create_model_and_transforms(pair.folder, output_dict=as_dict)[0], copy.copy(pair.theirs)
    theirs.output_dict = as_dict
    found, expected = face(**inputs), theirs(**inputs)
    assert type(found) is type(expected)
    if as_dict:
        assert list(found) == list(expected)
        found, expected = tuple(found.values()), tuple(expected.values())
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def accuracy(output: Tensor, target: Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """What open_clip_train's function of this name counts; its own makes a number of an array (1,), which numpy 2.4 no
    longer does."""
    first = output.topk(max(topk), dim=1).indices == target[:, None]
    return [first[:, :k].any(dim=1).sum().item() for k in topk]


@pytest.mark.parametrize("data", ["clothing", "cifar10_subset"])
def test_open_clips_evaluation_gives_the_same_numbers(
    pair: Any, shared_data: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own model, transform and tokenizer, in open_clip_train's loop."""
    monkeypatch.setattr("open_clip_train.zero_shot.accuracy", accuracy)
    face, transform, tokenizer = pair.ours
    results = []
    for model, prepare, tokenize in (
        (face, transform, tokenizer),
        (pair.theirs, pair.transform, open_clip.SimpleTokenizer()),
    ):
        pictures = ImageFolder(str(shared_data / data / "test"), prepare)
        some = torch.utils.data.Subset(pictures, range(0, len(pictures), len(pictures) // 50))
        classifier = open_clip.build_zero_shot_classifier(
            model, tokenize, pictures.classes, open_clip.SIMPLE_IMAGENET_TEMPLATES
        )
        results.append(run(model, classifier, DataLoader(some, 8), OPTIONS))
    assert results[0] == results[1]
    assert 0 < results[0][0] < results[0][1] < 1


@torch.no_grad()
def test_the_legacy_classifier_takes_it_too(pair: Any) -> None:
    face, _, tokenizer = pair.ours
    names, templates = ["cat", "dog"], open_clip.SIMPLE_IMAGENET_TEMPLATES
    legacy = open_clip.build_zero_shot_classifier_legacy
    expected = legacy(pair.theirs, open_clip.SimpleTokenizer(), names, templates)
    torch.testing.assert_close(legacy(face, tokenizer, names, templates), expected, rtol=0, atol=1e-6)


def several(loss: str = "clip") -> Model:
    backbone = vitdense.create_backbone("vit_nano_patch8", depth=1)
    clip = {"name": loss, "dim": 16, "text": {"name": "clip_text_nano", "context": 12}}
    if loss == "siglip":
        clip |= {"image_projection": "linear"}
    tasks = {"words": {"head": clip}, "semantic": {"head": {"name": "linear", "num_classes": 3}}}
    return Model(backbone, HEADS.create("tasks", {"tasks": tasks}).build_for(backbone)).eval()


@torch.no_grad()
def test_a_model_of_several_heads_shows_the_one_with_texts() -> None:
    model = several()
    face, tokenizer = OpenClipFace(model), FaceTokenizer(model)
    images = torch.rand(2, 3, 64, 64)
    expected = model.encode_image(images, normalize=False)
    torch.testing.assert_close(face.encode_image(model.normalise(images)), expected)
    assert tokenizer(["a", "b " * 50]).shape == (2, 12)
    assert image_size_of(model) == face.visual.image_size == (64, 64)


@torch.no_grad()
def test_a_bias_stands_behind_the_scale() -> None:
    face = OpenClipFace(several("siglip"))
    found = face(torch.randn(1, 3, 64, 64), FaceTokenizer(face.model)(["a"]))
    assert len(found) == 4
    bias: Tensor = found[3]
    assert bias.item() == -10
    logits = found[2] * found[0] @ found[1].T + bias
    torch.testing.assert_close(
        face.get_logits(torch.zeros(1, 3, 64, 64), FaceTokenizer(face.model)(["a"]))[1].shape, logits.shape
    )


def test_another_context_than_the_towers_is_told(pair: Any) -> None:
    _, _, tokenizer = pair.ours
    assert tokenizer(["a"], context_length=77).shape == (1, 77)
    with pytest.raises(UserError, match="the text tower reads 77 tokens, given context_length 32"):
        tokenizer(["a"], context_length=32)


def test_a_model_without_texts_is_told() -> None:
    backbone = vitdense.create_backbone("vit_nano_patch8", depth=1)
    model = Model(backbone, HEADS.create("linear", {"num_classes": 2}).build_for(backbone))
    with pytest.raises(UserError, match="has no text tower"):
        OpenClipFace(model)

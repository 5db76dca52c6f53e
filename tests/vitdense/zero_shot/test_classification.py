"""Logits and scores of zero-shot classification beside open_clip's and torchmetrics'."""

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix

import vitdense
from vitdense.contracts import HEADS
from vitdense.errors import UserError
from vitdense.model import Model
from vitdense.zero_shot.classification import BINS, Classifier, build_classifier, score, score_templates, with_texts
from vitdense.zero_shot.features import encoder_of, encoder_of_backbone, extract
from vitdense.zero_shot.prompts import class_names, read_prompts

NAMES = ["cat", "fire engine", "zebra", "dog", "house", "ship"]
CLASSES = class_names(NAMES)


def pictures(count: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, 3, 48, 48), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_logits_equal_open_clips(twins: Any, dtype: torch.dtype, atol: float) -> None:
    ours, theirs = twins.ours.to(dtype), twins.theirs.to(dtype)
    try:
        weights = open_clip.build_zero_shot_classifier(
            theirs, open_clip.SimpleTokenizer(), NAMES, open_clip.SIMPLE_IMAGENET_TEMPLATES
        )
        shown = F.normalize(theirs.encode_image(ours.normalise(pictures())), dim=-1)
        classifier = build_classifier(ours, read_prompts("simple"), CLASSES)
        found = classifier.logits(extract(encoder_of(ours, projected=True), torch.split(pictures(), 5)))
        torch.testing.assert_close(found, theirs.logit_scale.exp() * shown @ weights, rtol=0, atol=atol)
        assert found.dtype == dtype
        assert found.std() > 0.1
    finally:
        ours.float(), theirs.float()


def test_logits_are_not_rounded_to_eight_bits() -> None:
    """Two classes whose cosines differ by less than bfloat16 knows, under autocast."""
    near = F.normalize(torch.tensor([[1.0, 0.001], [1.0, 0.002]]), dim=1)
    classifier = Classifier(class_names("a,b"), near, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier.logits(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, 100 * near[:, 1][None])


def test_a_bias_is_added(twins: Any) -> None:
    config = {"text": {"name": "clip_text_nano", "context": 12}, "dim": 16, "bias": -3.0}
    model = Model(twins.ours.backbone, HEADS.create("clip", config).build_for(twins.ours.backbone)).eval()
    classifier = build_classifier(model, read_prompts("plain"), CLASSES)
    assert classifier.bias == -3.0
    vector = F.normalize(torch.randn(1, 16), dim=1)
    expected = classifier.scale * vector @ classifier.weights.T - 3
    torch.testing.assert_close(classifier.logits(vector), expected)


def drawn(count: int = 300) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 6, (count,))
    return 2 * torch.randn(count, 6) + 2 * F.one_hot(labels, 6), labels


def test_calibration_and_confusion_equal_torchmetrics() -> None:
    logits, labels = drawn()
    found = score(logits, labels, NAMES)
    theirs = MulticlassCalibrationError(6, n_bins=BINS, norm="l1")(logits.softmax(1), labels)
    assert found.results["ece"] == pytest.approx(theirs.item(), abs=1e-6)
    assert found.results["ece"] > 0.02
    assert torch.equal(found.confusion, MulticlassConfusionMatrix(6)(logits, labels))
    assert found.pictures.sum() == 300
    assert found.results["top1"] == (logits.argmax(1) == labels).double().mean().item()
    assert found.by_class["classes"] == NAMES


def test_a_confidence_on_a_border_belongs_below_it() -> None:
    """Three equal classes: 1/3 is the end of the fifth of 15 parts."""
    found = score(torch.zeros(4, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 1]), NAMES[:3])
    assert found.pictures.nonzero().flatten().tolist() == [4]
    assert found.results["ece"] == pytest.approx(0.75 - 1 / 3)


def test_logits_that_are_no_numbers_are_told() -> None:
    logits, labels = drawn(5)
    logits[3, 2] = torch.nan
    with pytest.raises(UserError, match="logits of 1 of 5 pictures are no numbers"):
        score(logits, labels, NAMES)


def test_each_template_is_scored_as_if_it_were_alone(twins: Any) -> None:
    classes, prompts = class_names("car=car|automobile,dog,house,ship,cat,tree"), read_prompts("simple")
    embeddings = extract(encoder_of(twins.ours, projected=True), [pictures(40)])
    labels = torch.randint(0, 6, (40,))
    found = score_templates(twins.ours, prompts, classes, embeddings, labels)
    assert [each.template for each in found] == [*prompts.templates, "all of them"]
    for each, chosen in zip(found, [*([one] for one in prompts.templates), prompts.templates], strict=True):
        logits = build_classifier(twins.ours, read_prompts(chosen), classes).logits(embeddings)
        alone = score(logits, labels, [name.name for name in classes]).results
        assert (each.top1, each.top5) == (alone["top1"], alone["top5"])
    assert len({each.top1 for each in found}) > 1


def test_one_of_several_heads_is_found(twins: Any) -> None:
    backbone = vitdense.create_backbone("vit_nano_patch8", depth=1).eval()
    clip = {"head": {"name": "clip", "dim": 16, "text": {"name": "clip_text_nano", "context": 12}}}
    semantic = {"head": {"name": "linear", "num_classes": 3}}
    config = HEADS.create("tasks", {"tasks": {"semantic": semantic, "captions": clip}})
    both = Model(backbone, config.build_for(backbone)).eval()
    alone = with_texts(both)
    assert alone.head is both.head.tasks["captions"]
    prompts = read_prompts("plain")
    logits = build_classifier(alone, prompts, CLASSES).logits(extract(encoder_of(both, projected=True), [pictures(2)]))
    assert logits.shape == (2, 6)
    semantic_only = Model(backbone, HEADS.create("linear", {"num_classes": 3}).build_for(backbone))
    with pytest.raises(UserError, match=r"head Linear\w* has no text tower, and classes are found by their names"):
        with_texts(semantic_only)


@torch.no_grad()
def test_features_of_a_model_and_of_its_backbone_are_the_same(twins: Any) -> None:
    found = extract(encoder_of(twins.ours), torch.split(pictures(), 5))
    torch.testing.assert_close(extract(encoder_of_backbone(twins.ours.backbone), [pictures()]), found)
    assert found.shape == (12, 48)
    floats = extract(encoder_of_backbone(twins.ours.backbone), [pictures() / 255])
    torch.testing.assert_close(floats, found)
    with pytest.raises(UserError, match="no pictures"):
        extract(encoder_of(twins.ours), [])


@pytest.mark.parametrize("name", ["a" * 3, "word " * 10_000, "é ü 猫 🐈", ""])
def test_texts_of_any_kind_are_encoded_as_open_clip_does(twins: Any, name: str) -> None:
    """Too long ones are cut, an empty one is its marks alone."""
    tokens = open_clip.SimpleTokenizer()([name])
    with torch.no_grad():
        expected = twins.theirs.encode_text(tokens, normalize=True)
        torch.testing.assert_close(twins.ours.encode_text([name]), expected, rtol=0, atol=1e-5)

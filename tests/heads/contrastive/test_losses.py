"""What contrastive heads are trained on: open_clip's losses, a teacher's term, captions that stand twice."""

import pytest
import torch
from open_clip.loss import ClipLoss, DistillClipLoss, SigLipLoss
from torch import Tensor
from torch.nn import functional as F

from heads.contrastive.losses import clip_loss, distillation_loss, number_texts, siglip_loss
from vitdense import create_backbone
from vitdense.contracts import HEADS, Batch, Outputs


def embeddings(number: int = 9, width: int = 12) -> Outputs:
    rows = torch.randn(2, number, width, dtype=torch.float64)
    images, texts = (F.normalize(each, dim=1).requires_grad_() for each in rows)
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    return {"image_embeddings": images, "text_embeddings": texts, "logit_scale": scale}


def assert_same(found: Tensor, expected: Tensor, leaves: Outputs) -> None:
    ours = torch.autograd.grad(found, [*leaves.values()])
    theirs = torch.autograd.grad(expected, [*leaves.values()])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_losses_are_open_clips() -> None:
    own, bias = embeddings(), torch.tensor(-4.0, dtype=torch.float64)
    given = (own["image_embeddings"], own["text_embeddings"], own["logit_scale"], bias)
    assert_same(clip_loss(*given), ClipLoss()(*given[:3]), own)
    assert_same(siglip_loss(*given), SigLipLoss()(*given), own)


def test_the_teachers_term_is_open_clips() -> None:
    own, teacher = embeddings(), {name: each.detach() for name, each in embeddings(width=7).items()}
    assert_same(distillation_loss(own, teacher), DistillClipLoss()(*own.values(), *teacher.values())[1], own)


def test_a_head_adds_the_teachers_term_by_its_weight() -> None:
    head = HEADS.create("clip", {"text": "clip_text_nano", "dim": 12}).build_for(create_backbone("vit_nano_patch8"))
    own, teacher = embeddings(), embeddings()
    batch: Batch = {"teacher": {**teacher, "weight": torch.tensor(0.25)}}
    losses = head.losses(own, batch)
    assert set(losses) == {"loss_clip", "loss_distill"}
    assert losses["loss_distill"].item() == pytest.approx(distillation_loss(own, teacher).item() / 4)


def test_the_same_captions_are_negatives_unless_the_recipe_says_otherwise() -> None:
    tokens, own = torch.randint(1, 99, (9, 5)), embeddings()
    tokens[4] = tokens[7]
    backbone, found = create_backbone("vit_nano_patch8"), {}
    for choice in ("negatives", "ignored"):
        options = {"text": "clip_text_nano", "dim": 12, "same_captions": choice}
        found[choice] = HEADS.create("clip", options).build_for(backbone).losses(own, {"tokens": tokens})["loss_clip"]
    torch.testing.assert_close(found["negatives"], clip_loss(*own.values()))
    torch.testing.assert_close(
        found["ignored"], clip_loss(*own.values(), same=torch.tensor([0, 1, 2, 3, 7, 5, 6, 7, 8]))
    )
    assert found["ignored"] < found["negatives"]


def test_texts_have_one_number_each_however_they_are_trimmed() -> None:
    tokens = torch.randint(1, 49408, (500, 12))
    tokens[250:] = tokens[:250].flip(1)
    numbers = number_texts(tokens)
    assert len(torch.unique(numbers)) == len(torch.unique(tokens, dim=0))
    assert torch.equal(number_texts(F.pad(tokens, (0, 65))), numbers)

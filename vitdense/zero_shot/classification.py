"""Zero-shot classification: logits of pictures, and what they are worth by class, by template and by confidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitdense.contracts import ContrastiveHead
from vitdense.errors import UserError
from vitdense.metrics.accuracy import Accuracy
from vitdense.metrics.segmentation import count_pairs
from vitdense.model import Model
from vitdense.zero_shot.classifier import class_embeddings, text_embeddings
from vitdense.zero_shot.prompts import ClassName, Prompts, fill

BINS = 15
"""Parts of confidence in which calibration is told (https://arxiv.org/abs/1706.04599)."""


@dataclass(frozen=True)
class Classifier:
    """weights (K, D) of unit length, one row for each class; `scale` and `bias` make logits of their products."""

    classes: tuple[ClassName, ...]
    weights: Tensor
    scale: float
    bias: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """As results bear them."""
        return tuple(each.name for each in self.classes)

    def logits(self, embeddings: Tensor) -> Tensor:
        """embeddings: (B, D) of unit length -> (B, K) in fp32 or better: with 8 bits many classes would be equal."""
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.scale * (embeddings.to(wide) @ self.weights.to(wide).T) + self.bias


def build_classifier(model: Model, prompts: Prompts, classes: Sequence[ClassName]) -> Classifier:
    """A classifier of these classes; UserError where the model has no text tower, alone (see `with_texts`)."""
    head, device = contrastive_head(model), model.get_buffer("mean").device
    weights = class_embeddings(model, head.tokenizer, prompts.of(classes), device=device)
    found = {name: value.item() for name, value in head.scale_and_bias().items()}
    return Classifier(tuple(classes), weights, found["logit_scale"], found.get("logit_bias", 0.0))


def contrastive_head(model: Model) -> ContrastiveHead:
    """The head with the text tower; UserError where there is none."""
    if not isinstance(model.head, ContrastiveHead):
        raise UserError(
            f"head {type(model.head).__name__} has no text tower, and classes are found by their names: take a model "
            "with head clip or siglip, or a published one such as open_clip/ViT-B-32"
        )
    return model.head


def with_texts(model: Model) -> Model:
    """The model with the one of its heads that has a text tower; UserError where none has."""
    for task, head in model.head.tasks.items():
        if isinstance(head, ContrastiveHead):
            return model.alone(task)
    contrastive_head(model)
    return model


@dataclass(frozen=True)
class Score:
    """What logits (N, K) of pictures with labels (N,) are worth.

    results: top1, top5 and mean_per_class in 0..1, and ece, the expected calibration error of softmax's confidence.
    confusion (K, K) counts by true and predicted class; confidence, accuracy and pictures (BINS,) tell calibration.
    """

    results: dict[str, float]
    by_class: dict[str, list[object]]
    confusion: Tensor
    confidence: Tensor
    accuracy: Tensor
    pictures: Tensor


def score(logits: Tensor, labels: Tensor, names: Sequence[str]) -> Score:
    """logits (N, K), labels (N,) -> the score; UserError where labels are none of the classes, or logits no numbers."""
    finite = logits.isfinite().all(dim=1)
    if not finite.all():
        raise UserError(
            f"logits of {(~finite).sum().item()} of {len(logits)} pictures are no numbers: check the weights"
        )
    metric = Accuracy(tuple(names))
    metric.update(list(logits), {"labels": labels})
    sure, predicted = logits.double().softmax(dim=1).max(dim=1)
    right = (predicted == labels).double()
    places = (sure * BINS).ceil().long().clamp(1, BINS) - 1  # (0, 1/15] is the first
    pictures = torch.bincount(places, minlength=BINS)
    confidence = torch.bincount(places, sure, minlength=BINS) / pictures
    accuracy = torch.bincount(places, right, minlength=BINS) / pictures
    gaps = (accuracy - confidence).abs().nan_to_num() * pictures
    results = metric.compute() | {"ece": (gaps.sum() / pictures.sum()).item()}
    confusion = count_pairs(labels, predicted, len(names))[:, :-1]
    by_class = {name: list(column) for name, column in metric.details().items()}
    return Score(results, by_class, confusion, confidence, accuracy, pictures)


@dataclass(frozen=True)
class TemplateScore:
    """What one template alone is worth."""

    template: str
    top1: float
    top5: float


def score_templates(
    model: Model, prompts: Prompts, classes: Sequence[ClassName], embeddings: Tensor, labels: Tensor
) -> list[TemplateScore]:
    """Each template alone, and "all of them" last; embeddings (N, D) of pictures with labels (N,).

    Each text is encoded once, and counts in its template's classifier and in that of all.
    """
    head, device = contrastive_head(model), model.get_buffer("mean").device
    words = [word for each in classes for word in each.words]
    texts = [fill(template, word) for template in prompts.templates for word in words]
    found = text_embeddings(model, head.tokenizer, texts, device=device).cpu()
    found = found.view(len(prompts.templates), len(words), -1)  # (T, W, D)
    names, counts = tuple(each.name for each in classes), [len(each.words) for each in classes]

    def worth(name: str, chosen: Tensor) -> TemplateScore:
        of_class = [part.flatten(0, 1).mean(0) for part in torch.split(chosen, counts, dim=1)]
        weights = torch.nn.functional.normalize(torch.stack(of_class), dim=-1)
        metric = Accuracy(names)
        metric.update(list(embeddings.to(weights) @ weights.T), {"labels": labels})
        values = metric.compute()
        return TemplateScore(name, values["top1"], values["top5"])

    alone = [worth(template, found[i : i + 1]) for i, template in enumerate(prompts.templates)]
    return [*alone, worth("all of them", found)]

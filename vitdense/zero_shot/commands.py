"""What tools/zero_shot.py does: its arguments, and the way from pictures to findings."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vitdense.errors import UserError
from vitdense.inference import InferenceConfig
from vitdense.metrics.accuracy import Accuracy
from vitdense.model import Model
from vitdense.zero_shot.classification import build_classifier, score, score_templates
from vitdense.zero_shot.features import Features, encoder_of, extract
from vitdense.zero_shot.labelled import Labelled, Prepared, preparation_of, read_labelled
from vitdense.zero_shot.matching import Matched, match_classes
from vitdense.zero_shot.probes import fit_linear_probe, nearest_logits
from vitdense.zero_shot.prompts import ClassName, Prompts, checked_classes, class_names, read_prompts
from vitdense.zero_shot.reports import Findings, as_dict
from vitdense.zero_shot.segmentation import build_segmenter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("model", help="runs/x/best, a published CLIP's folder or file, open_clip/NAME[/TAG], hf/REPO")
    parser.add_argument("folder", type=Path, help="FOLDER/CLASS/x.jpg, or a .csv with path and label")
    parser.add_argument("--classes", help="cat,dog, a .txt with one a line, or a .json; name=words for other words")
    templates = "imagenet, simple, plain, .txt, FILE.json[:SET], 'a {}'"
    parser.add_argument("--templates", default="imagenet", help=templates)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write predictions.csv and report.html there")
    parser.add_argument("--batch-size", type=_positive, default=32, help="pictures at a time (32)")
    parser.add_argument("--on-bad-picture", choices=("stop", "skip"), default="stop", help="skip names them at the end")
    parser.add_argument("--each-template", action="store_true", help="score each template alone too")
    parser.add_argument("--probe", type=Path, metavar="FOLDER", help="learn from these: k neighbours, linear probe")
    parser.add_argument("--segment", action="store_true", help="write masks of the folder's pictures; needs --out")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="such as architecture=ViT-B-32")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


@dataclass(frozen=True)
class Question:
    """What is read before the model is: prompts, pictures, the classes of both, and pictures to learn from, if any."""

    prompts: Prompts
    labelled: Labelled
    matched: Matched
    known: Labelled | None = None


def read_question(options: argparse.Namespace) -> Question:
    """From the arguments; UserError for what can't be read or brought together."""
    prompts, given = _read_words(options)
    labelled = read_labelled(options.folder)
    known = read_labelled(options.probe) if options.probe else None
    if known is not None and known.names != labelled.names:
        raise UserError(
            f"{options.probe} has the classes {', '.join(known.names[:5])} and {options.folder}"
            f" {', '.join(labelled.names[:5])}; a probe needs the same ones in both"
        )
    return Question(prompts, labelled, match_classes(labelled.names, given), known)


def classify(model: Model, question: Question, options: argparse.Namespace) -> tuple[Findings, list[str]]:
    """What the model takes the pictures for, and what has to be told beside it: notes and files passed over."""
    classes = question.matched.classes
    classifier = build_classifier(model, question.prompts, classes)
    prepared = _prepared(model, question.labelled, options)
    embeddings = extract(encoder_of(model, projected=True), prepared)
    labels = torch.tensor(question.matched.places)[prepared.labels()]
    logits = classifier.logits(embeddings.to(classifier.weights.device)).cpu()
    found = score(logits, labels, classifier.names)
    each = score_templates(model, question.prompts, classes, embeddings, labels) if options.each_template else ()
    files = [question.labelled.files[place] for place in prepared.read]
    notes = [f"note: {question.matched.note}"] if question.matched.note else []
    told = notes + [f"skipped: {reason}" for reason in prepared.skipped]
    return Findings(f"{options.model} on {options.folder}", files, labels, logits, classifier.names, found, each), told


def probe(model: Model, question: Question, options: argparse.Namespace) -> dict[str, float]:
    """Accuracy of k nearest neighbours and of a linear probe that learnt from the pictures of `options.probe`."""
    if question.known is None:
        return {}
    known, asked = (_features(model, each, options) for each in (question.known, question.labelled))
    count = len(question.labelled.names)
    linear = fit_linear_probe(known, count)
    logits = {
        "knn_top1": nearest_logits(known, asked.vectors, count),
        "linear_probe_top1": linear.logits(asked.vectors),
    }
    results = {}
    for name, each in logits.items():
        metric = Accuracy(question.labelled.names)
        metric.update(list(each), {"labels": asked.labels})
        results[name] = metric.compute()["top1"]
    return results | {"linear_probe_penalty": linear.penalty}


def read_segment_classes(options: argparse.Namespace) -> tuple[Prompts, tuple[ClassName, ...]]:
    """Prompts, and the classes of --classes or those that came with the prompts; UserError where there are none."""
    if options.out is None:
        raise UserError("--segment needs --out FOLDER for the masks")
    prompts, given = _read_words(options)
    return prompts, checked_classes(given, "--classes")


def segmenter(model: Model, prompts: Prompts, classes: Sequence[ClassName], options: argparse.Namespace) -> Model:
    """A model whose predictions are masks of these classes.

    Unless --set says otherwise it looks through windows of the size that the tower was made for, half overlapping, on
    pictures whose short side is 1.5 times that, as SCLIP's authors do (https://arxiv.org/abs/2312.01597).
    """
    if any(each.startswith("inference.") for each in options.set):
        return build_segmenter(model, prompts, classes, model.inference)
    side = min(preparation_of(model).size)
    inference = InferenceConfig(mode="sliding", short_side=side * 3 // 2, window=side, stride=max(side // 2, 1))
    return build_segmenter(model, prompts, classes, inference)


def as_json(findings: Findings, notes: Sequence[str], more: dict[str, float]) -> dict[str, object]:
    """Everything in one object."""
    return {**as_dict(findings), **more, "notes": list(notes)}


def _read_words(options: argparse.Namespace) -> tuple[Prompts, tuple[ClassName, ...]]:
    """Templates, and the classes of --classes, else those that came with the templates, if any."""
    prompts = read_prompts(options.templates)
    return prompts, prompts.classes if options.classes is None else class_names(options.classes)


def _prepared(model: Model, labelled: Labelled, options: argparse.Namespace) -> Prepared:
    return Prepared(labelled, preparation_of(model), options.batch_size, skip_bad=options.on_bad_picture == "skip")


def _features(model: Model, labelled: Labelled, options: argparse.Namespace) -> Features:
    """Frozen features of the pictures that can be read."""
    prepared = _prepared(model, labelled, options)
    vectors = extract(encoder_of(model), prepared)
    return Features(vectors, prepared.labels())


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, given {text!r}")
    return int(text)

"""What tools/zero_shot.py does: its arguments, and the way from pictures to findings."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from vitdense.errors import UserError
from vitdense.inference import InferenceConfig
from vitdense.metrics.accuracy import Accuracy
from vitdense.model import Model
from vitdense.zero_shot.classification import build_classifier, contrastive_head, embed_pictures, score, score_templates
from vitdense.zero_shot.features import Features, encoder_of, extract
from vitdense.zero_shot.labelled import Labelled, Prepared, match_classes, preparation_of, read_labelled
from vitdense.zero_shot.probes import fit_linear_probe, nearest_logits
from vitdense.zero_shot.prompts import ClassName, checked_classes, class_names, read_prompts
from vitdense.zero_shot.reports import Findings, as_dict
from vitdense.zero_shot.segmentation import build_segmenter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("model", help="runs/x/best, a published CLIP's folder or file, open_clip/NAME[/TAG], hf/REPO")
    parser.add_argument("folder", type=Path, help="FOLDER/CLASS/x.jpg, or a .csv with path and label")
    parser.add_argument("--classes", help="cat,dog, a .txt with one a line, or a .json; name=words for other words")
    parser.add_argument(
        "--templates", default="imagenet", help="imagenet, simple, plain, .txt, FILE.json[:SET], 'a {}'"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write predictions.csv and report.html there")
    parser.add_argument("--batch-size", type=_positive, default=32, help="pictures at a time (32)")
    parser.add_argument("--on-bad-picture", choices=("stop", "skip"), default="stop", help="skip names them at the end")
    parser.add_argument("--each-template", action="store_true", help="score each template alone too")
    parser.add_argument("--probe", type=Path, metavar="FOLDER", help="learn from these: k neighbours, linear probe")
    parser.add_argument(
        "--segment", action="store_true", help="masks of the pictures in the folder instead; needs --out"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def classify(model: Model, options: argparse.Namespace) -> tuple[Findings, list[str]]:
    """What the model takes the pictures for, and what has to be told beside it: notes and files passed over."""
    contrastive_head(model)  # before anything is read
    prompts = read_prompts(options.templates)
    labelled = read_labelled(options.folder)
    given = class_names(options.classes) if options.classes is not None else checked_own(prompts.classes)
    matched = match_classes(labelled.names, given)
    classifier = build_classifier(model, prompts, matched.classes)
    prepared = _prepared(model, labelled, options)
    embeddings = embed_pictures(model, prepared)
    labels = torch.tensor([matched.places[labelled.labels[place]] for place in prepared.read])
    logits = classifier.logits(embeddings.to(classifier.weights.device)).cpu()
    found = score(logits, labels, classifier.names)
    each = score_templates(model, prompts, matched.classes, embeddings, labels) if options.each_template else ()
    files = [labelled.files[place] for place in prepared.read]
    title = f"{options.model} on {options.folder}"
    notes = [f"note: {matched.note}"] if matched.note else []
    told = notes + [f"skipped: {reason}" for reason in prepared.skipped]
    return Findings(title, files, labels, logits, classifier.names, found, each), told


def checked_own(classes: Sequence[ClassName]) -> tuple[ClassName, ...]:
    """Those that came with the prompts, if any."""
    return checked_classes(classes, "the prompts") if classes else ()


def probe(model: Model, options: argparse.Namespace) -> dict[str, float]:
    """Accuracy of k nearest neighbours and of a linear probe that learnt from the pictures of `options.probe`."""
    train, val = read_labelled(options.probe), read_labelled(options.folder)
    if train.names != val.names:
        raise UserError(
            f"{options.probe} has the classes {', '.join(train.names[:5])} and {options.folder}"
            f" {', '.join(val.names[:5])}; a probe needs the same ones in both"
        )
    known, asked = (_features(model, each, options) for each in (train, val))
    count = len(train.names)
    linear = fit_linear_probe(known, count)
    logits = {
        "knn_top1": nearest_logits(known, asked.vectors, count),
        "linear_probe_top1": linear.logits(asked.vectors),
    }
    results = {}
    for name, each in logits.items():
        metric = Accuracy(train.names)
        metric.update(list(each), {"labels": asked.labels})
        results[name] = metric.compute()["top1"]
    return results | {"linear_probe_penalty": linear.penalty}


def segmenter(model: Model, options: argparse.Namespace) -> Model:
    """A model whose predictions are masks of the classes of --classes, or of those that came with the prompts."""
    if options.out is None:
        raise UserError("--segment needs --out FOLDER for the masks")
    prompts = read_prompts(options.templates)
    given = class_names(options.classes) if options.classes is not None else prompts.classes
    classes = checked_classes(given, "--classes")
    return build_segmenter(model, prompts, classes, InferenceConfig())


def as_json(findings: Findings, notes: Sequence[str], more: dict[str, float]) -> dict[str, object]:
    """Everything in one object."""
    return {**as_dict(findings), **more, "notes": list(notes)}


def _prepared(model: Model, labelled: Labelled, options: argparse.Namespace) -> Prepared:
    return Prepared(labelled, preparation_of(model), options.batch_size, skip_bad=options.on_bad_picture == "skip")


def _features(model: Model, labelled: Labelled, options: argparse.Namespace) -> Features:
    """Frozen features of the pictures that can be read."""
    prepared = _prepared(model, labelled, options)
    device = model.get_buffer("mean").device
    unknown = torch.zeros(0, dtype=torch.long)
    found = extract(encoder_of(model), ((images.to(device), unknown) for images in prepared))
    return Features(found.vectors, torch.tensor([labelled.labels[place] for place in prepared.read]))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value

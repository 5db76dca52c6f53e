"""Classify pictures by the names of classes: python tools/zero_shot.py MODEL FOLDER [--classes ...] [...]."""

import argparse
import sys

import torch
from rich.console import Console

from vitdense import cli
from vitdense.loading import load_model
from vitdense.model import Model
from vitdense.predicting import find_pictures, predict_files
from vitdense.zero_shot import commands, reports
from vitdense.zero_shot.classification import with_texts


def main(arguments: list[str]) -> int:
    """Prints accuracy by class, top-1, top-5 and ECE; with --segment writes masks instead."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands.add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.segment:
        return segment(options)
    question = commands.read_question(options)
    model = _load(options)
    findings, notes = commands.classify(model, question, options)
    more = commands.probe(model, question, options)
    if options.out:
        reports.write_predictions(findings, options.out)
        reports.write_report(findings, options.out)
    if options.json:
        print(cli.to_json(commands.as_json(findings, notes, more)))
        return cli.DONE
    reports.print_findings(findings, more, Console())
    print("".join(f"{note}\n" for note in notes), file=sys.stderr, end="")
    return cli.DONE


def segment(options: argparse.Namespace) -> int:
    """Writes masks and overlays of the pictures below the folder."""
    prompts, classes = commands.read_segment_classes(options)
    found = find_pictures([options.folder])
    model = commands.segmenter(_load(options), prompts, classes, options)
    done = predict_files(model, found, options.out, skip_bad=options.on_bad_picture == "skip")
    if options.json:
        print(cli.to_json({"written": len(done.written), "skipped": done.skipped, "out": str(options.out)}))
        return cli.DONE
    print(f"{len(done.written)} files -> {options.out / 'masks'} and {options.out / 'overlays'}")
    print("".join(f"skipped: {reason}\n" for reason in done.skipped), file=sys.stderr, end="")
    return cli.DONE


def _load(options: argparse.Namespace) -> Model:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return with_texts(load_model(options.model, options.set).to(device).eval())


if __name__ == "__main__":
    sys.exit(cli.run(main))

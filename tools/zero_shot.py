"""Classify pictures by the names of classes: python tools/zero_shot.py MODEL FOLDER [--classes ...] [...]."""

import argparse
import sys

import torch
from rich.console import Console

from vitdense import cli
from vitdense.loading import load_model
from vitdense.predicting import find_pictures, predict_files
from vitdense.zero_shot import reports
from vitdense.zero_shot.commands import add_arguments, as_json, classify, probe, segmenter


def main(arguments: list[str]) -> int:
    """Prints accuracy by class, top-1, top-5 and ECE; with --segment writes masks instead."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    model = load_model(options.model).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    if options.segment:
        found = find_pictures([options.folder])
        skip = options.on_bad_picture == "skip"
        done = predict_files(segmenter(model, options), found, options.out, skip_bad=skip)
        print(f"{len(done.written)} files -> {options.out / 'masks'} and {options.out / 'overlays'}", *done.skipped)
        return cli.DONE
    findings, notes = classify(model, options)
    more = probe(model, options) if options.probe else {}
    if options.out:
        reports.write_predictions(findings, options.out)
        reports.write_report(findings, options.out)
    if options.json:
        print(cli.to_json(as_json(findings, notes, more)))
        return cli.DONE
    console = Console()
    console.print(reports.as_table(findings), reports.as_line(findings))
    if findings.templates:
        console.print(reports.as_template_table(findings.templates))
    for name, value in more.items():
        print(f"{name} {value:.4g}")
    print("\n".join(notes), file=sys.stderr, end="\n" if notes else "")
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))

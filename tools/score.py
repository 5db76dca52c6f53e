"""Score predictions in files: python tools/score.py miou|depth GT_FOLDER PRED_FOLDER [options]."""

import argparse
import sys

from rich.console import Console

from vitdense import cli
from vitdense.scoring import depth, masks
from vitdense.scoring.arguments import add_depth, add_miou, depth_config
from vitdense.scoring.pairs import Pairs, pair_depth, pair_files


def main(arguments: list[str]) -> int:
    """Prints a table by class where there are classes and the summary, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (add_miou, add_depth):
        add(commands)
    options = parser.parse_args(arguments)
    return _miou(options) if options.command == "miou" else _depth(options)


def _miou(options: argparse.Namespace) -> int:
    pairs = _told(pair_files(options.truth, options.predictions))
    coding = masks.MaskCoding.of(options.classes, options.ignore, options.reduce_zero_label)
    overlaps = masks.overlaps_of(coding, dice=options.dice, boundary=options.boundary)
    metric = masks.score_masks(pairs, coding, average=options.average, overlaps=overlaps)
    if options.json:
        print(cli.to_json(masks.as_dict(metric, pairs, overlaps)))
    else:
        means = "  ".join(f"{name} {value:.2%}" for name, value in masks.summary(metric, overlaps).items())
        Console().print(masks.as_table(metric), means)
    return cli.DONE


def _depth(options: argparse.Namespace) -> int:
    found = pair_depth(options.truth, options.predictions, options.truth_suffix, options.prediction_suffix)
    pairs = _told(found)
    metric = depth.score_depth(pairs, depth_config(options), scale=options.scale)
    if options.json:
        print(cli.to_json(depth.as_dict(metric, pairs)))
    else:
        print("  ".join(f"{name} {value:.4f}" for name, value in metric.compute().items()))
    return cli.DONE


def _told(pairs: Pairs) -> Pairs:
    if warning := pairs.warning():
        print(f"warning: {warning}", file=sys.stderr)
    return pairs


if __name__ == "__main__":
    sys.exit(cli.run(main))

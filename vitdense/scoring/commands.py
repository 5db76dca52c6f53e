"""What the commands of tools/score.py do: one function for each, from arguments to what is printed."""

import argparse
import sys
from collections.abc import Callable, Iterable

from rich.console import Console

from vitdense import cli
from vitdense.scoring import coco, coco_plots, depth, masks, objects, panoptic
from vitdense.scoring.arguments import depth_config
from vitdense.scoring.pairs import Pairs, pair_depth, pair_files


def score_miou(options: argparse.Namespace) -> None:
    """Masks of classes: a table and the means."""
    pairs = _told(pair_files(options.truth, options.predictions))
    coding = masks.MaskCoding.of(options.classes, options.ignore, options.reduce_zero_label)
    overlaps = masks.overlaps_of(coding, dice=options.dice, boundary=options.boundary)
    metric = masks.score_masks(pairs, coding, average=options.average, overlaps=overlaps)
    if options.json:
        print(cli.to_json(masks.as_dict(metric, pairs, overlaps)))
    else:
        means = "  ".join(f"{name} {value:.2%}" for name, value in masks.summary(metric, overlaps).items())
        Console().print(masks.as_table(metric), means)


def score_depth(options: argparse.Namespace) -> None:
    """Maps of metres: the means."""
    found = pair_depth(options.truth, options.predictions, options.truth_suffix, options.prediction_suffix)
    pairs = _told(found)
    metric = depth.score_depth(pairs, depth_config(options), scale=options.scale)
    if options.json:
        print(cli.to_json(depth.as_dict(metric, pairs)))
    else:
        print("  ".join(f"{name} {value:.4f}" for name, value in metric.compute().items()))


def score_things(options: argparse.Namespace) -> None:
    """Boxes or masks of things: the summary, classes and plots where they are asked for."""
    scored = coco.score_things(options.truth, options.predictions, options.command)
    _warn(scored.warnings)
    if options.plots is not None:
        coco_plots.write_plots(scored, options.plots, least_score=options.least_score)
    if options.json:
        print(cli.to_json(coco.as_dict(scored, per_class=options.per_class)))
        return
    if options.per_class:
        Console().print(coco.as_table(scored))
    print(coco.as_line(scored))


def score_panoptic(options: argparse.Namespace) -> None:
    """Segments of things and stuff: the summary, and classes where they are asked for."""
    scored = panoptic.score_panoptic(
        options.truth, options.truth_folder, options.predictions, options.predictions_folder
    )
    if options.json:
        print(cli.to_json(panoptic.as_dict(scored, per_class=options.per_class)))
        return
    if options.per_class:
        Console().print(panoptic.as_table(scored))
    print("  ".join(f"{name} {value:.4f}" for name, value in scored.quality.compute().items()))


def score_objects(options: argparse.Namespace) -> None:
    """Objects followed through videos: the summary, and objects and frames where they are asked for."""
    names = None if options.sequences is None else objects.read_names(options.sequences)
    scored = objects.score_sequences(options.truth, options.predictions, names)
    _warn([scored.warning] if scored.warning else [])
    if options.csv is not None:
        objects.write_csv(scored, options.csv)
    if options.json:
        print(cli.to_json(objects.as_dict(scored, per_object=options.per_object)))
        return
    if options.per_object:
        Console().print(objects.as_table(scored))
    print(objects.as_line(scored))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "miou": score_miou,
    "depth": score_depth,
    "boxes": score_things,
    "masks": score_things,
    "panoptic": score_panoptic,
    "objects": score_objects,
}


def _told(pairs: Pairs) -> Pairs:
    warning = pairs.warning()
    _warn([warning] if warning else [])
    return pairs


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)

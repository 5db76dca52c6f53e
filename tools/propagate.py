"""Follow objects through videos by frozen features: python tools/propagate.py FRAMES --mask FIRST.png [...]."""

import argparse
import sys
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from vitdense import cli
from vitdense.build import create_backbone
from vitdense.contracts import Backbone
from vitdense.loading import load_model
from vitdense.propagation.arguments import read_arguments
from vitdense.propagation.config import read_options
from vitdense.propagation.files import Clip, find_clip, find_davis, propagate_clips, with_truth
from vitdense.scoring.objects import Scored, as_dict, as_line, read_names, score_sequences, write_csv


def main(arguments: list[str]) -> int:
    """Writes masks/CLIP/FRAME.png, overlays/CLIP.mp4 and, where there is a truth, objects.csv, and prints J and F."""
    options = read_arguments(arguments, __doc__)
    config, extra = read_options(options.set)
    names = options.sequences and read_names(options.sequences)
    clips = find_davis(options.source, names) if names else [find_clip(options.source, options.mask)]
    bar = Console(stderr=True)
    show = partial(track, description="propagate", total=len(clips), console=bar, disable=not bar.is_terminal)
    backbone = _load(options, extra).to("cuda" if torch.cuda.is_available() else "cpu")
    count = propagate_clips(backbone, clips, options.out, config, overlays=not options.no_overlays, track=show)
    scored = _score(options, clips)
    if scored:
        write_csv(scored, options.out / "objects.csv")
    if options.json:
        scores = as_dict(scored, per_object=True) if scored else {}
        print(cli.to_json({"masks": count, "out": str(options.out), **scores}))
        return cli.DONE
    told = as_line(scored) if scored else "not scored: there is no truth of every frame"
    print(f"{count} masks -> {options.out / 'masks'}\n{told}")
    return cli.DONE


def _load(options: argparse.Namespace, extra: dict[str, Any]) -> Backbone:
    if options.checkpoint:
        return load_model(options.checkpoint, [each for each in options.set if each.startswith("backbone.")]).backbone
    return create_backbone(options.backbone, weights=options.weights, **extra)


def _score(options: argparse.Namespace, clips: list[Clip]) -> Scored | None:
    masks = options.out / "masks"
    if options.mask:
        return score_sequences(options.truth, masks / clips[0].name) if options.truth else None
    names = with_truth(clips)
    return score_sequences(options.source / "Annotations" / "480p", masks, names) if names else None


if __name__ == "__main__":
    sys.exit(cli.run(main))

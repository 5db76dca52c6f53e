"""Probe features of whole slides: python tools/slides.py MODEL slides.csv --out FOLDER [--tiles key=value ...]."""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from vitdense import cli
from vitdense.build import create_backbone
from vitdense.loading import load_model
from vitdense.options import read_options, read_values
from vitdense.rasters.probing import FEATURES, embed_slides, read_slides, score_probes
from vitdense.rasters.slides import Encoder, SlideConfig
from vitdense.rasters.writing import digest
from vitdense.zero_shot.features import encoder_of, encoder_of_backbone


def main(arguments: list[str]) -> int:
    """Writes features.npz and the vectors of all tiles; scores probes on every split but train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="runs/x/best, a published model, or with --weights a backbone's name")
    parser.add_argument("slides", type=Path, help="a .csv with file and label, and split (train, and others to score)")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write to")
    parser.add_argument("--weights", help="of a backbone: a file, a folder or hf/REPO")
    parser.add_argument("--tiles", nargs="*", default=[], metavar="key=value", help="such as tile=256 background=white")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="options of the model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    config, slides = read_options(SlideConfig, options.tiles, "--tiles"), read_slides(options.slides)
    encoder, screen = load_encoder(options), Console(stderr=True)
    features = embed_slides(encoder, slides, config, options.out, track=partial(track, console=screen))
    scores = score_probes(features)
    if options.json:
        print(cli.to_json({"slides": len(slides), "features": str(options.out / FEATURES), "scores": scores}))
        return cli.DONE
    lines = [f"{split}: " + ", ".join(f"{name} {each:.4g}" for name, each in scores[split].items()) for split in scores]
    print(f"{len(slides)} slides, {sum(features.tiles)} tiles -> {options.out / FEATURES}", *lines, sep="\n")
    return cli.DONE


def load_encoder(options: argparse.Namespace) -> Encoder:
    """A model's backbone, or one by its name with weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.weights:
        given = read_values(options.set, "--set")
        backbone = create_backbone(options.model, weights=options.weights, **given).to(device).eval()
        encode = encoder_of_backbone(backbone)
    else:
        model = load_model(options.model, options.set).to(device).eval()
        backbone, encode = model.backbone, encoder_of(model)
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    return Encoder(encode, tuple(backbone.mean), digest(backbone, mean, std))


if __name__ == "__main__":
    sys.exit(cli.run(main))

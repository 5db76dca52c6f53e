"""The arguments of tools/propagate.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vitdense.errors import UserError


def read_arguments(arguments: Sequence[str], description: str | None) -> argparse.Namespace:
    """What the user wrote; UserError for arguments that say nothing beside each other."""
    parser = argparse.ArgumentParser(description=description)
    _add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.checkpoint and options.weights:
        raise UserError("--weights belongs to --backbone; the model of --checkpoint has its own")
    if options.sequences and options.truth:
        raise UserError("--truth belongs to --mask; the masks of --sequences lie in Annotations below the root")
    return options


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is followed, by which features, and what is written."""
    parser.add_argument("source", type=Path, help="a folder of frames, a video, or with --sequences the root of DAVIS")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--mask", type=Path, help="of the first frame: a PNG whose values are objects, 0 is none")
    what.add_argument("--sequences", type=Path, metavar="LIST.txt", help="such as DAVIS/ImageSets/2017/val.txt")
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--backbone", help="by name, such as vit_small_patch16")
    whose.add_argument("--checkpoint", help="the backbone of a trained model, such as runs/shapes_swin/best")
    parser.add_argument("--weights", help="of --backbone: a file, folder or name; random where left out")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write to")
    parser.add_argument("--truth", type=Path, help="with --mask: a folder with a mask for each frame, to score against")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="such as topk=7, level=0 or backbone.KEY=VALUE"
    )
    parser.add_argument("--no-overlays", action="store_true", help="write masks alone, which needs no PyAV")
    parser.add_argument("--json", action="store_true", help="print one JSON object")

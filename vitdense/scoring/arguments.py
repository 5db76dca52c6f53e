"""The arguments of tools/score.py, a function for each command."""

import argparse
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from vitdense.errors import UserError
from vitdense.metrics.depth import DepthErrorConfig
from vitdense.regions import Crop


def add_miou(commands: Any) -> None:
    """`miou`: masks of classes, as pictures."""
    miou = commands.add_parser("miou", help="masks of classes, as pictures")
    miou.add_argument("truth", type=Path, metavar="GT_FOLDER", help="masks of the truth")
    miou.add_argument("predictions", type=Path, metavar="PRED_FOLDER", help="predicted masks, under the same names")
    miou.add_argument("--classes", type=int, required=True, help="how many there are")
    miou.add_argument(
        "--ignore", type=int, nargs="+", default=[], help="values without a label, as the files store them"
    )
    miou.add_argument(
        "--reduce-zero-label",
        choices=("truth", "both"),
        nargs="?",
        const="both",
        default="none",
        help="0 is no label and class k is stored as k + 1 (ADE20K, also `--ignore 0`): in both, or in the truth only",
    )
    miou.add_argument(
        "--average",
        choices=("present", "all"),
        help="all: absent classes count as 0 (the default where 0 is no label, as in ADE20K's devkit); else present",
    )
    miou.add_argument("--dice", action="store_true", help="Dice too, over the classes that occur")
    miou.add_argument("--boundary", action="store_true", help="Boundary IoU too, over the classes that occur")
    miou.add_argument("--json", action="store_true", help="print one JSON object")


def add_depth(commands: Any) -> None:
    """`depth`: maps of metres in 16-bit files."""
    depth = commands.add_parser("depth", help="maps of depth, as 16-bit pictures")
    depth.add_argument("truth", type=Path, metavar="GT_FOLDER", help="depth maps of the truth, 0 where unknown")
    depth.add_argument(
        "predictions", type=Path, metavar="PRED_FOLDER", help="predicted maps: x.pred.png, or x.png, for x.depth.png"
    )
    depth.add_argument("--scale", type=_positive, required=True, help="units a metre: 1000, or 256 for KITTI")
    depth.add_argument("--align", action="store_true", help="fit scale and shift, in depth, to each picture first")
    depth.add_argument("--min", type=float, default=0.0, help="metres: only truth above counts (0)")
    depth.add_argument("--max", type=_positive, help="metres: only truth below counts (no limit)")
    depth.add_argument("--crop", choices=get_args(Crop), default="none", help="the part of the picture that counts")
    depth.add_argument(
        "--truth-suffix", default="", help="how its files end (.depth.png where there are such, or .png)"
    )
    depth.add_argument("--prediction-suffix", default="", help="how its files end (the same)")
    depth.add_argument("--json", action="store_true", help="print one JSON object")


def add_things(commands: Any) -> None:
    """`boxes` and `masks`: things, in COCO's JSON."""
    for name in ("boxes", "masks"):
        things = commands.add_parser(name, help=f"{name} of things, in COCO's JSON")
        things.add_argument("truth", type=Path, metavar="GT.json", help="images, annotations and categories")
        things.add_argument("predictions", type=Path, metavar="PREDICTIONS.json", help="a list of results")
        things.add_argument("--per-class", action="store_true", help="AP, AP50, AP75 and AR of each class too")
        things.add_argument("--plots", type=Path, metavar="FOLDER", help="draw precision, recall and confusion there")
        things.add_argument(
            "--least-score", type=float, default=0.3, help="what is below is not drawn in the confusion matrix (0.3)"
        )
        things.add_argument("--json", action="store_true", help="print one JSON object")


def add_panoptic(commands: Any) -> None:
    """`panoptic`: segments of things and stuff, in COCO's JSON and PNGs."""
    panoptic = commands.add_parser("panoptic", help="segments of things and stuff, in COCO's JSON and PNGs")
    for side, name in (("truth", "GT"), ("predictions", "PRED")):
        panoptic.add_argument(side, type=Path, metavar=f"{name}.json", help=f"the segments of the {side}")
        panoptic.add_argument(f"{side}_folder", type=Path, metavar=f"{name}_FOLDER", help="its maps, as PNGs")
    panoptic.add_argument("--per-class", action="store_true", help="PQ, SQ and RQ of each class too")
    panoptic.add_argument("--json", action="store_true", help="print one JSON object")


def add_objects(commands: Any) -> None:
    """`objects`: masks of objects that are followed through videos."""
    objects = commands.add_parser("objects", help="masks of objects in videos, in DAVIS's layout")
    objects.add_argument(
        "truth", type=Path, metavar="GT_FOLDER", help="a folder for each sequence, such as DAVIS/Annotations/480p"
    )
    objects.add_argument("predictions", type=Path, metavar="PRED_FOLDER", help="the same, under the same names")
    objects.add_argument("--sequences", type=Path, metavar="LIST.txt", help="names, one a line: score all of these")
    objects.add_argument("--per-object", action="store_true", help="J and F of each object too")
    objects.add_argument("--csv", type=Path, metavar="FILE", help="write J and F of each object and frame there")
    objects.add_argument("--json", action="store_true", help="print one JSON object")


def depth_config(options: argparse.Namespace) -> DepthErrorConfig:
    """What `depth` was asked to count; UserError where the range is none."""
    chosen = {"min_depth": options.min, "max_depth": options.max, "crop": options.crop, "align": options.align}
    try:
        return DepthErrorConfig.model_validate(chosen)
    except ValidationError as error:
        raise UserError("; ".join(f"{fault['msg']}, given {chosen}" for fault in error.errors())) from None


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value

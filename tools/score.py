"""Score predictions in files: python tools/score.py miou GT_FOLDER PRED_FOLDER --classes N [--ignore I ...]."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from vitdense import cli
from vitdense.scoring import MaskCoding, as_dict, as_table, pair_files, score_masks


def main(arguments: list[str]) -> int:
    """Prints a table by class and the summary, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    miou = parser.add_subparsers(dest="command", required=True).add_parser("miou", help="masks of classes, as pictures")
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
    miou.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    pairs = pair_files(options.truth, options.predictions)
    if warning := pairs.warning():
        print(f"warning: {warning}", file=sys.stderr)
    coding = MaskCoding.of(options.classes, options.ignore, options.reduce_zero_label)
    metric = score_masks(pairs, coding, average=options.average)
    if options.json:
        print(cli.to_json(as_dict(metric, pairs)))
    else:
        Console().print(as_table(metric), "  ".join(f"{name} {value:.2%}" for name, value in metric.compute().items()))
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))

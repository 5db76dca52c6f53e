"""Predict pictures and videos: python tools/predict.py CHECKPOINT FILES... --out FOLDER [--set key=value]."""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from vitdense import cli
from vitdense.explaining.files import explain_files
from vitdense.loading import load_model
from vitdense.predicting import find_pictures, predict_files, read_image_ids
from vitdense.rasters import commands as rasters


def main(arguments: list[str]) -> int:
    """Writes masks/*.png, depth/*.png (mm), predictions.json or panoptic.json (COCO), and overlays; 2 for bad files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="such as runs/shapes_swin/best")
    parser.add_argument("pictures", nargs="+", type=Path, help="pictures, videos (with PyAV), or folders of them")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write to")
    parser.add_argument("--ids-from", type=Path, metavar="GT.json", help="a COCO file that numbers the pictures")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="such as inference.flip=true")
    parser.add_argument("--on-bad-picture", choices=("stop", "skip"), default="stop", help="skip names them at the end")
    parser.add_argument("--explain", choices=("attention", "rollout", "pca"), help="look inside instead")
    parser.add_argument("--layer", type=int, default=-1, help="of attention; -1 is the last")
    parser.add_argument("--query", help="who attends: cls, mean, or a cell as ROW,COLUMN")
    parser.add_argument("--raster", nargs="*", metavar="key=value", help="predict rasters in tiles (so .npy always)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    found = {} if rasters.wanted(options) else find_pictures(options.pictures)
    model = load_model(options.checkpoint, options.set).to("cuda" if torch.cuda.is_available() else "cpu")
    console = Console(stderr=True)
    if rasters.wanted(options):
        return rasters.predict(model, options, console)
    if options.explain:
        count = explain_files(model, found, options.out, options.explain, layer=options.layer, query=options.query)
        print(f"{count} pictures -> {options.out / options.explain}")
        return cli.DONE
    done = predict_files(
        model,
        found,
        options.out,
        skip_bad=options.on_bad_picture == "skip",
        image_ids=read_image_ids(options.ids_from) if options.ids_from else None,
        track=lambda files: track(files, "predict", total=len(found), console=console),
    )
    if options.json:
        facts = {"written": len(done.written), "skipped": done.skipped, "out": str(options.out), "silent": done.silent}
        print(cli.to_json(facts))
        return cli.DONE
    print(f"{len(done.written)} files -> {', '.join(map(str, done.places))}, and overlays beside")
    print("".join(f"{reason}\n" for reason in [*done.silent, *(f"skipped: {each}" for each in done.skipped)]), end="")
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))

"""Export a model: python tools/export.py CHECKPOINT --to onnx|torch_export [--out FILE] [--size H W] [--static]."""

import argparse
import sys
from pathlib import Path

from vitdense import cli
from vitdense.exporting import SUFFIXES, export_model
from vitdense.loading import load_model


def main(arguments: list[str]) -> int:
    """Writes the file, runs it, and prints how far its results are from the model's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="such as runs/shapes_swin/best, or a published model")
    parser.add_argument("--to", choices=list(SUFFIXES), required=True, help="the format")
    parser.add_argument("--out", type=Path, help="the file to write (model.onnx or model.pt2)")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="traced at (512 512)")
    parser.add_argument("--static", action="store_true", help="for this size and one picture only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    out = options.out or Path(f"model{SUFFIXES[options.to]}")
    model = load_model(options.checkpoint)
    size = (options.size[0], options.size[1])
    distances = export_model(model, out, options.to, size=size, dynamic=not options.static)
    if options.json:
        print(cli.to_json({"file": str(out), "distances": distances}))
        return cli.DONE
    for case, distance in distances.items():
        print(f"{case}: {distance:.1e} from the model")
    print(f"{out} ({out.stat().st_size / 2**20:.1f} MiB)")
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
